"""`/v1/responses` through the official client over the fake engine: items, events, tools, forms, the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.server.conftest import BASE
from tests.server.fake_engine import FakeEngine
from tests.server.test_answers import following
from tests.server.test_tools import EXPECTED, FLAGS, TEXT
from tests.waiting import eventually

CONTEXT = 1000
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False},
    {"type": "function", "name": "time", "parameters": None, "strict": None},
]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=CONTEXT)


@pytest.fixture
async def api(make_client: Callable[..., Any]) -> openai.AsyncOpenAI:
    return client_of(await make_client())


@pytest.fixture
async def parsing(make_client: Callable[..., Any], engine: FakeEngine) -> openai.AsyncOpenAI:
    """Of a server with parsers, whose model says `TEXT`."""
    engine.text = TEXT
    return client_of(await make_client(*FLAGS))


@pytest.fixture
def storing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    yield monkeypatch


def client_of(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", http_client=http, max_retries=0)


def prompt_of(engine: FakeEngine) -> str:
    return str(engine.seen[-1][1]["prompt"])


async def test_text(api: openai.AsyncOpenAI) -> None:
    answer = await api.responses.create(model="fake", input="hello", max_output_tokens=4, temperature=0.5, top_p=0.9)
    assert answer.id.startswith("resp_") and answer.object == "response" and answer.model == "fake"
    assert answer.output_text == following("user: hello\nassistant:", 4)
    (item,) = answer.output
    assert item.type == "message" and item.role == "assistant" and item.status == "incomplete"
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.9, 4)
    assert answer.usage is not None and answer.usage.output_tokens == 4 and answer.usage.input_tokens == 22
    assert answer.usage.total_tokens == 26 and answer.usage.input_tokens_details.cached_tokens == 2


async def test_completed(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.text = "Done."
    answer = await api.responses.create(model="fake", input="hello")
    assert (answer.status, answer.output_text, answer.incomplete_details) == ("completed", "Done.", None)
    assert answer.output[0].status == "completed"  # type: ignore[union-attr]


async def test_output_of_nothing_is_an_empty_message(make_client: Callable[..., Any], engine: FakeEngine) -> None:
    engine.text = "<think>"
    api = client_of(await make_client("--reasoning-parser", "deepseek_r1"))
    answer = await api.responses.create(model="fake", input="hello")
    assert [(item.type, answer.output_text) for item in answer.output] == [("message", "")]


async def test_sampling_fields_reach_the_engine(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    given = {"top_k": 7, "min_p": 0.1, "seed": 3, "stop": ["x"], "stop_token_ids": [5], "ignore_eos": True,
             "skip_special_tokens": False, "repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": 2,
             "bad_words": ["no"], "allowed_token_ids": [1, 2], "include_stop_str_in_output": True}  # fmt: skip
    extra = {**given, "logit_bias": {"5": 1}, "cache_salt": "salt"}
    await api.responses.create(model="fake", input="a", max_output_tokens=9, extra_body=extra)
    _, prompt, params = engine.seen[0]
    assert {name: getattr(params, name) for name in given} == given
    assert params.logit_bias == {5: 1} and params.max_tokens == 9 and prompt["cache_salt"] == "salt"


async def test_items_become_messages(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
    ]
    await api.responses.create(model="fake", input=items, instructions="You are.", reasoning={"effort": "low"})
    ((conversation, kwargs),) = engine.tokenizer.rendered
    calls = conversation[3].pop("tool_calls")
    assert conversation == [
        {"role": "system", "content": "You are."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    assert [(call["id"], call["function"]) for call in calls] == [
        ("c1", {"name": "f", "arguments": {"a": 1}}),
        ("c2", {"name": "g", "arguments": {}}),
    ]
    assert kwargs["reasoning_effort"] == "low"


def check_items(answer: Response) -> None:
    """Of `TEXT`."""
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert answer.output[0].content[0].text == "I need both."  # type: ignore[union-attr, index]
    assert answer.output_text == "One moment."
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == EXPECTED
    assert len({call.call_id for call in calls}) == 2 and answer.status == "completed"


async def test_tools_and_reasoning(parsing: openai.AsyncOpenAI) -> None:
    check_items(await parsing.responses.create(model="fake", input="hi", tools=TOOLS))
    one = await parsing.responses.create(model="fake", input="hi", tools=TOOLS, parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["reasoning", "message", "function_call"]
    none = await parsing.responses.create(model="fake", input="hi", tools=TOOLS, tool_choice="none")
    assert [item.type for item in none.output] == ["reasoning", "message"] and "<tool_call>" in none.output_text
    plain = await parsing.responses.create(model="fake", input="hi", extra_body={"include_reasoning": False})
    assert [item.type for item in plain.output] == ["message"]


async def test_events(parsing: openai.AsyncOpenAI) -> None:
    stream = await parsing.responses.create(model="fake", input="hi", tools=TOOLS, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    check_items(events[-1].response)  # type: ignore[union-attr]
    grown: dict[int, str] = {}
    closed: dict[int, Any] = {}
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            assert set(closed) == set(grown) == set(range(event.output_index))
            grown[event.output_index] = ""
        elif event.type.endswith(".delta"):
            grown[event.output_index] += event.delta  # type: ignore[union-attr, operator]
        elif event.type.endswith(("text.done", "arguments.done")):
            assert grown[event.output_index] == getattr(event, "text", None) or event.arguments  # type: ignore[union-attr]
        elif event.type == "response.output_item.done":
            closed[event.output_index] = event.item
    assert [item.id for item in closed.values()] == [item.id for item in events[-1].response.output]  # type: ignore[union-attr]
    assert list(grown.values())[:2] == ["I need both.", "One moment."]


async def test_stream_helper(parsing: openai.AsyncOpenAI) -> None:
    async with parsing.responses.stream(model="fake", input="hi", tools=TOOLS) as stream:
        async for _ in stream:
            pass
        check_items(await stream.get_final_response())


async def test_stream_that_is_cut(api: openai.AsyncOpenAI) -> None:
    stream = await api.responses.create(model="fake", input="hello", max_output_tokens=3, stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete" and events[-1].response.status == "incomplete"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == following("assistant:", 3) == events[-1].response.output_text


async def test_stream_that_fails(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = RuntimeError("secret"), 2
    stream = await api.responses.create(model="fake", input="hello", max_output_tokens=6, stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "error" and events[-1].code == "InternalServerError" and "secret" not in str(events)
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_logprobs(api: openai.AsyncOpenAI, make_client: Callable[..., Any]) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "a", "max_output_tokens": 3, "top_logprobs": 2}
    answer = await api.responses.create(**asked, include=["message.output_text.logprobs"])
    logprobs = answer.output[0].content[0].logprobs  # type: ignore[union-attr, index]
    assert "".join(entry.token for entry in logprobs) == answer.output_text  # type: ignore[union-attr]
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)  # type: ignore[union-attr]
    stream = await api.responses.create(**asked, include=["message.output_text.logprobs"], stream=True)
    found = [event.logprobs for event in [e async for e in stream] if event.type == "response.output_text.delta"]
    assert [len(entry) for entry in found] == [1, 1, 1]
    other = client_of(await make_client("--reasoning-parser", "qwen3"))
    with pytest.raises(openai.BadRequestError, match="not available"):
        await other.responses.create(**asked, include=["message.output_text.logprobs"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"format": {"type": "text"}}, None),
        ({"format": {"type": "json_object"}, "verbosity": "medium"}, {"json_object": True}),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            {"json": {"type": "object"}},
        ),
    ],
)
async def test_forms(api: openai.AsyncOpenAI, engine: FakeEngine, given: Any, expected: Any) -> None:
    await api.responses.create(model="fake", input="a", max_output_tokens=2, text=given)
    constraint = engine.seen[0][2].structured_outputs
    if expected is None:
        assert constraint is None
    else:
        assert constraint is not None
        assert {kind: getattr(constraint, kind) for kind in constraint.kinds} == expected


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
async def test_forced_calls(api: openai.AsyncOpenAI, engine: FakeEngine, choice: Any) -> None:
    engine.text = "{}" if isinstance(choice, dict) else '[{"name": "weather", "parameters": {}}]'
    answer = await api.responses.create(model="fake", input="a", tools=TOOLS, tool_choice=choice)
    assert [(item.type, item.name, item.arguments) for item in answer.output] == [("function_call", "weather", "{}")]  # type: ignore[union-attr]
    assert engine.seen[0][2].structured_outputs is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input"),
        ({"input": 1}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.mode"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"verbosityy": "low"}}, "text.verbosityy"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"truncation": "middle"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"background": True}, "background"),
        ({"background": True, "stream": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"temperatur": 1}, "temperatur"),
        ({"stop": [""]}, "stop"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ],
)  # fmt: skip
async def test_faults(api: openai.AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await api.responses.create(model="fake", input="a", extra_body=fields)
    assert caught.value.param == param, caught.value


class TestStore:
    @pytest.fixture
    async def api(self, storing: pytest.MonkeyPatch, make_client: Callable[..., Any]) -> openai.AsyncOpenAI:
        return client_of(await make_client())

    async def test_conversation_goes_on(self, api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        engine.text = "Hi!"
        first = await api.responses.create(model="fake", input="a", instructions="Once.")
        assert first.store is True  # type: ignore[attr-defined]
        second = await api.responses.create(model="fake", input="b", previous_response_id=first.id)
        assert prompt_of(engine) == "user: a\nassistant: Hi!\nuser: b\nassistant:"
        assert second.previous_response_id == first.id
        stream = await api.responses.create(model="fake", input="c", previous_response_id=second.id, stream=True)
        last = [event async for event in stream][-1]
        assert prompt_of(engine) == "user: a\nassistant: Hi!\nuser: b\nassistant: Hi!\nuser: c\nassistant:"
        assert (await api.responses.retrieve(last.response.id)).output_text == "Hi!"  # type: ignore[union-attr]

    async def test_references_to_items(self, api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        """What Vercel's AI SDK sends in place of the items of earlier turns."""
        engine.text = "Hi!"
        first = await api.responses.create(model="fake", input="a")
        reference: Any = {"type": "item_reference", "id": first.output[0].id}
        turns: list[Any] = [{"role": "user", "content": "a"}, reference, {"role": "user", "content": "b"}]
        await api.responses.create(model="fake", input=turns)
        assert prompt_of(engine) == "user: a\nassistant: Hi!\nuser: b\nassistant:"
        await api.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="no item 'msg_") as caught:
            await api.responses.create(model="fake", input=turns)
        assert caught.value.param == "input[1].id"

    async def test_retrieve_and_delete(self, api: openai.AsyncOpenAI) -> None:
        answer = await api.responses.create(model="fake", input="a", max_output_tokens=3, metadata={"k": "v"})
        found = await api.responses.retrieve(answer.id)
        assert found == answer and found.metadata == {"k": "v"}
        await api.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(answer.id)

    async def test_not_stored(self, api: openai.AsyncOpenAI) -> None:
        answer = await api.responses.create(model="fake", input="a", max_output_tokens=3, store=False)
        assert answer.store is False  # type: ignore[attr-defined]
        for call in (api.responses.retrieve, api.responses.cancel, api.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await call(answer.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await api.responses.create(model="fake", input="a", previous_response_id=answer.id)
        assert caught.value.param == "previous_response_id"

    async def test_clients_do_not_choose_ids(self, api: openai.AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "fake", "input": "a", "max_output_tokens": 1}
        headers = {"X-Request-Id": "mine"}
        answers = [await api.responses.create(**asked, extra_headers=headers) for _ in range(2)]
        assert answers[0].id != answers[1].id

    async def test_background(self, api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        engine.gate.clear()
        begun = await api.responses.create(model="fake", input="a", max_output_tokens=3, background=True)
        assert begun.status == "in_progress" and begun.output == []
        assert (await api.responses.retrieve(begun.id)).status == "in_progress"
        with pytest.raises(openai.BadRequestError, match="in_progress"):
            await api.responses.create(model="fake", input="b", previous_response_id=begun.id)
        engine.gate.set()
        await eventually(lambda: not engine.running)
        for _ in range(100):
            if (ended := await api.responses.retrieve(begun.id)).status != "in_progress":
                break
            await asyncio.sleep(0.01)
        assert ended.status == "incomplete" and ended.output_text == following("assistant:", 3)
        assert (await api.responses.cancel(begun.id)).status == "incomplete"

    async def test_cancel(self, api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        engine.gate.clear()
        begun = await api.responses.create(model="fake", input="a", max_output_tokens=3, background=True)
        await eventually(lambda: bool(engine.running))
        assert (await api.responses.cancel(begun.id)).status == "cancelled"
        assert not engine.running
        assert (await api.responses.retrieve(begun.id)).status == "cancelled"

    async def test_background_that_fails(self, api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        engine.failure = RuntimeError("secret")
        begun = await api.responses.create(model="fake", input="a", max_output_tokens=3, background=True)
        for _ in range(100):
            if (ended := await api.responses.retrieve(begun.id)).status == "failed":
                break
            await asyncio.sleep(0.01)
        assert ended.error is not None and "secret" not in ended.error.message

    async def test_only_the_background_is_cancelled(self, api: openai.AsyncOpenAI) -> None:
        answer = await api.responses.create(model="fake", input="a", max_output_tokens=3)
        with pytest.raises(openai.BadRequestError, match="background"):
            await api.responses.cancel(answer.id)

    async def test_it_is_bounded(
        self, storing: pytest.MonkeyPatch, make_client: Callable[..., Any], engine: FakeEngine
    ) -> None:
        storing.setenv("VLLM_RESPONSES_API_STORE_SIZE", "2")
        api = client_of(await make_client())
        ids = [(await api.responses.create(model="fake", input="a", max_output_tokens=1)).id for _ in range(3)]
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(ids[0])
        assert [(await api.responses.retrieve(i)).id for i in ids[1:]] == ids[1:]


async def test_without_a_store(api: openai.AsyncOpenAI) -> None:
    answer = await api.responses.create(model="fake", input="a", max_output_tokens=1, store=True)
    assert answer.store is False  # type: ignore[attr-defined]
    reference: Any = {"type": "item_reference", "id": "msg_1"}
    with pytest.raises(openai.BadRequestError, match=r"items whole.*VLLM_ENABLE_RESPONSES_API_STORE") as caught:
        await api.responses.create(model="fake", input=[reference])
    assert caught.value.param == "input[0]"
    with pytest.raises(openai.NotFoundError, match="VLLM_ENABLE_RESPONSES_API_STORE"):
        await api.responses.retrieve(answer.id)
