"""Answers and events against the official clients' own models, strictly: the clients themselves read leniently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import pydantic
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from tests.server.fake_engine import FakeEngine
from tests.server.process import ServerProcess, serve
from tests.server.test_responses import CONTEXT, TOOLS, client_of
from tests.server.test_tools import FLAGS, TEXT

EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(Annotated[ResponseStreamEvent, pydantic.Discriminator("type")])
OURS = {"store", "name", "bytes", "frequency_penalty", "presence_penalty"}
"""Fields that the client's models do not know: `store` and vLLM's penalties of a response; `name` where a call is done,
which older ones need; `bytes` of a token in an event."""
ASKED: dict[str, Any] = {"model": "fake", "input": "hi"}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=CONTEXT)


def extras(value: Any, path: str = "") -> set[str]:
    """Fields that the client's models do not have, wherever they are."""
    found: set[str] = set()
    if isinstance(value, pydantic.BaseModel):
        found |= {f"{path}{name}" for name in value.model_extra or {}}
        for name in type(value).model_fields:
            found |= extras(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for each in value:
            found |= extras(each, path)
    return found


def check_response(body: dict[str, Any]) -> Response:
    response = Response.model_validate(body)
    assert extras(response) <= OURS
    return response


async def events_of(http: httpx.AsyncClient, **fields: Any) -> list[Any]:
    """Each as the client's model of it, after all that holds for every stream was checked."""
    text = (await http.post("/v1/responses", json={**ASKED, "stream": True, **fields})).text
    assert text.endswith("\n\n") and "[DONE]" not in text
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = EVENTS.validate_python(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {event.type}"
        assert {each.rpartition(".")[2] for each in extras(event)} <= OURS, event
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    return events


def told(events: list[Any]) -> list[Any]:
    """The items that the events between the first two and the last build up, checked step by step."""
    items: list[Any] = []
    parts: dict[str, str] = {}
    for event in events[2:-1]:
        kind = event.type.removeprefix("response.")
        if kind == "output_item.added":
            assert event.output_index == len(items) and event.item.status == "in_progress"
            items.append(event.item)
            continue
        item = items[event.output_index]
        if kind == "output_item.done":
            assert event.item.id == item.id and event.item.type == item.type
            items[event.output_index] = event.item
            continue
        assert event.item_id == item.id and event.output_index == len(items) - 1
        if kind == "content_part.added":
            assert event.part.text == "" and item.id not in parts
        elif kind.endswith(".delta"):
            assert event.delta, "an event that says nothing"
            parts[item.id] = parts.get(item.id, "") + event.delta
        elif kind == "content_part.done":
            assert event.part.text == parts.get(item.id, "")
        else:
            assert kind.endswith(".done")
            assert (event.arguments if "arguments" in kind else event.text) == parts.get(item.id, "")
    return items


@pytest.mark.parametrize(
    "fields", [{}, LOGPROBS, {"max_output_tokens": 3}, {"instructions": "a", "metadata": {"a": "b"}}]
)
async def test_text(make_client: Callable[..., Any], engine: FakeEngine, fields: dict[str, Any]) -> None:
    engine.text = None if "max_output_tokens" in fields else "Hello you."
    http = await make_client()
    events = await events_of(http, **fields)
    plain = check_response((await http.post("/v1/responses", json={**ASKED, **fields})).json())
    ended = events[-1].response
    assert events[-1].type == f"response.{plain.status}" and ended.output_text == plain.output_text != ""
    assert told(events) == ended.output
    assert ended.usage == plain.usage and ended.metadata == plain.metadata


async def test_reasoning_and_calls(make_client: Callable[..., Any], engine: FakeEngine) -> None:
    engine.text = TEXT
    http = await make_client(*FLAGS)
    events = await events_of(http, tools=TOOLS)
    kinds = {event.type for event in events}
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done"} <= kinds
    assert told(events) == events[-1].response.output
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message", *["function_call"] * 2]
    check_response((await http.post("/v1/responses", json={**ASKED, "tools": TOOLS})).json())


async def test_a_stream_that_fails(make_client: Callable[..., Any], engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = RuntimeError("secret"), 2
    events = await events_of(await make_client(), max_output_tokens=6)
    assert events[-1].type == "error" and len(told(events)) == 1


VLLMS = {"stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs", "prompt_text", "reasoning",
         "reasoning_content", "kv_transfer_params"}  # fmt: skip
"""vLLM's own fields of completions and chats."""


def check_model(model: Any, body: dict[str, Any]) -> Any:
    checked = model.model_validate(body)
    assert {each.rpartition(".")[2] for each in extras(checked)} <= VLLMS
    return checked


@pytest.mark.parametrize("fields", [{}, {"n": 2, "temperature": 1}, {"logprobs": 2}, {"echo": True}])
async def test_completions(make_client: Callable[..., Any], fields: dict[str, Any]) -> None:
    http = await make_client()
    asked = {"model": "fake", "prompt": "hi", "max_tokens": 4, **fields}
    plain = check_model(Completion, (await http.post("/v1/completions", json=asked)).json())
    data = await data_of(http, "/v1/completions", asked)
    for choice in [choice for each in data for choice in each["choices"]]:  # the client has one model for both
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    chunks = [check_model(Completion, each) for each in data]
    texts = [
        "".join(c.text for chunk in chunks for c in chunk.choices if c.index == i) for i in range(len(plain.choices))
    ]
    assert texts == [choice.text for choice in plain.choices] and chunks[-1].usage == plain.usage


@pytest.mark.parametrize("fields", [{}, {"n": 2, "temperature": 1}, {"logprobs": True, "top_logprobs": 2}])
@pytest.mark.parametrize("parsing", [False, True])
async def test_chat(make_client: Callable[..., Any], engine: FakeEngine, fields: dict[str, Any], parsing: bool) -> None:
    engine.text = TEXT if parsing else None
    http = await make_client(*FLAGS if parsing else ())
    tools = {"tools": [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]}
    messages = [{"role": "user", "content": "hi"}]
    asked = {"model": "fake", "messages": messages, "max_tokens": 400, **fields, **(tools if parsing else {})}
    plain = check_model(ChatCompletion, (await http.post("/v1/chat/completions", json=asked)).json())
    chunks = [check_model(ChatCompletionChunk, data) for data in await data_of(http, "/v1/chat/completions", asked)]
    for choice in plain.choices:
        deltas = [c.delta for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(delta.content or "" for delta in deltas) == (choice.message.content or "")
        assert bool(choice.message.tool_calls) is parsing is any(delta.tool_calls for delta in deltas)
    assert chunks[-1].usage == plain.usage


async def data_of(http: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    lines = (await http.post(path, json=body)).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: Literal["Ada", "Alan"]
    age: int = pydantic.Field(ge=18, le=99)


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--structured-outputs-config", '{"disable_any_whitespace": true}') as running:
        yield running


def test_parse(server: ServerProcess) -> None:
    """The client's `responses.parse` and its streaming twin, over a model that writes anything."""
    asked: dict[str, Any] = {"model": "test-model", "input": "Who?", "text_format": Person, "max_output_tokens": 120}
    for seed in range(4):
        answer = server.client().responses.parse(**asked, extra_body={"seed": seed})
        assert answer.status == "completed" and isinstance(answer.output_parsed, Person)
        assert Person.model_validate_json(answer.output_text) == answer.output_parsed
        with server.client().responses.stream(**asked, extra_body={"seed": seed}) as stream:
            done = [event for event in stream if event.type == "response.output_text.done"]
            assert stream.get_final_response().output_parsed == answer.output_parsed
        assert [event.parsed for event in done] == [answer.output_parsed]


def test_parse_of_a_strict_function(server: ServerProcess) -> None:
    answer = server.client().responses.parse(
        model="test-model",
        input="Who?",
        max_output_tokens=120,
        tools=[openai.pydantic_function_tool(Person)],  # type: ignore[list-item]
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.output
    assert call.type == "function_call" and isinstance(call.parsed_arguments, Person)


async def test_parse_that_cannot(make_client: Callable[..., Any]) -> None:
    """An output that is no JSON is an error of the client's, not of the server's."""
    with pytest.raises(pydantic.ValidationError):
        await client_of(await make_client()).responses.parse(model="fake", input="a", text_format=Person)
