"""Tool calls and reasoning in chat answers, plain and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.server.conftest import BASE
from tests.server.fake_engine import FakeEngine

QUESTION: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "time"}},
]
TEXT = (
    "<think>I need both.</think>One moment."
    '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
)
FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")


@pytest.fixture
async def api(engine: FakeEngine, make_client: Callable[..., Any]) -> openai.AsyncOpenAI:
    engine.text = TEXT
    client = await make_client(*FLAGS)
    return openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", http_client=client, max_retries=0)


def names_and_arguments(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or []]


EXPECTED = [("weather", {"city": "Paris"}), ("time", {})]


async def test_plain(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(model="fake", messages=QUESTION, tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert names_and_arguments(choice.message.tool_calls) == EXPECTED
    assert len({call.id for call in choice.message.tool_calls or []}) == 2
    assert choice.message.reasoning == choice.message.reasoning_content == "I need both."  # type: ignore[attr-defined]


async def test_streamed(api: openai.AsyncOpenAI) -> None:
    stream = await api.chat.completions.create(
        model="fake", messages=QUESTION, tools=TOOLS, n=2, temperature=1, stream=True
    )
    chunks = [chunk async for chunk in stream]
    for index in range(2):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        deltas = [choice.delta for choice in choices]
        assert "".join(delta.content or "" for delta in deltas) == "One moment."
        assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "I need both."
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        begun = [call for call in calls if call.id]
        assert [(call.index, call.type, call.function.name) for call in begun] == [
            (0, "function", "weather"),
            (1, "function", "time"),
        ]
        assert not [call for call in calls if not call.id and (call.type or call.function.name)]
        arguments = ["".join(call.function.arguments for call in calls if call.index == i) for i in range(2)]
        assert [json.loads(text) for text in arguments] == [arguments for _, arguments in EXPECTED]
        assert len([call for call in calls if call.index == 0]) > 3, "in pieces, while they are written"
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]


async def test_the_clients_own_helper_adds_a_stream_up(api: openai.AsyncOpenAI) -> None:
    async with api.chat.completions.stream(model="fake", messages=QUESTION, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert names_and_arguments(message.tool_calls) == EXPECTED and message.content == "One moment."


@pytest.mark.parametrize("parallel", [True, False])
async def test_forced_calls_are_streamed_in_pieces(api: openai.AsyncOpenAI, engine: FakeEngine, parallel: bool) -> None:
    engine.text = '[{"name": "weather", "parameters": {"city": "Paris"}}, {"name": "time", "parameters": {}}]'
    stream = await api.chat.completions.create(
        model="fake",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=parallel,
        stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls if call.id] == ["weather", "time"][: 1 + parallel]
    assert "".join(call.function.arguments for call in calls if call.index == 0) == '{"city": "Paris"}'
    assert {call.index for call in calls} == set(range(1 + parallel))


async def test_choices_about_tools(api: openai.AsyncOpenAI) -> None:
    one = await api.chat.completions.create(model="fake", messages=QUESTION, tools=TOOLS, parallel_tool_calls=False)
    assert names_and_arguments(one.choices[0].message.tool_calls) == EXPECTED[:1]
    none = await api.chat.completions.create(model="fake", messages=QUESTION, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.tool_calls is None and "<tool_call>" in (none.choices[0].message.content or "")
    assert none.choices[0].finish_reason == "stop"
    plain = await api.chat.completions.create(model="fake", messages=QUESTION, extra_body={"include_reasoning": False})
    assert plain.choices[0].message.reasoning is None and "I need both" not in (plain.choices[0].message.content or "")


async def test_message_without_calls_has_no_empty_list(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.text = "Just text."
    answer = await api.chat.completions.create(model="fake", messages=QUESTION, tools=TOOLS)
    assert "tool_calls" not in answer.choices[0].message.model_fields_set
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Just text.", "stop")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": TOOLS, "tool_choice": "sometimes"},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {"name": 5}}]},
        {"tools": {}},
        {"tool_choice": "required"},
    ],
)
async def test_faults(api: openai.AsyncOpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await api.chat.completions.create(model="fake", messages=QUESTION, **fields)
    assert caught.value.param in ("tools", "tools[0]", "tool_choice")


async def test_server_without_parsers(engine: FakeEngine, make_client: Callable[..., Any]) -> None:
    client = await make_client()
    response = await client.post("/v1/chat/completions", json={"messages": QUESTION, "tools": TOOLS})
    assert response.status_code == 400
    for fields in ({"tools": TOOLS, "tool_choice": "none"}, {"include_reasoning": False}):
        response = await client.post("/v1/chat/completions", json={"messages": QUESTION, **fields})
        assert response.status_code == 200
        message = response.json()["choices"][0]["message"]
        assert message["reasoning"] is None and not {"reasoning_content", "tool_calls"} & message.keys()


FORCED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": QUESTION, "tools": TOOLS, "tool_choice": "required"},
    "/v1/messages": {
        "messages": QUESTION,
        "max_tokens": 50,
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
    },
    "/v1/responses": {
        "input": "hi",
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
        "tool_choice": "required",
    },
}


def texts_of(answer: Any) -> Iterator[str]:
    """Every text that an answer, or an event, shows a reader."""
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name in ("content", "text", "delta", "arguments", "partial_json") and isinstance(value, str):
                yield value
            yield from texts_of(value)
    elif isinstance(answer, list):
        for value in answer:
            yield from texts_of(value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", ['[{ "name": "get', "[", '[{"name": "weather", "param'])
@pytest.mark.parametrize("path", FORCED)
async def test_a_forced_call_that_is_cut_off_leaks_nothing(
    engine: FakeEngine, make_client: Callable[..., Any], path: str, cut: str, stream: bool
) -> None:  # A18
    engine.text = cut
    client = await make_client()
    response = await client.post(path, json={**FORCED[path], "stream": stream})
    assert response.status_code == 200
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    answers = [json.loads(line) for line in lines] if stream else [response.json()]
    assert not "".join(text for answer in answers for text in texts_of(answer))


CODER_CALL = "<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("parser", "text", "content", "schema", "arguments"),
    [
        ("qwen3_coder", f"<tool_call>\n{CODER_CALL}", "", {"type": ["integer", "null"]}, {"x": 5}),  # A12
        ("qwen3_coder", f"Ok.\n{CODER_CALL}", "Ok.", {"type": "integer"}, {"x": 5}),  # A16
        (
            "mistral",
            'Let me check. [TOOL_CALLS] [{"name":"f","arguments":{"x":1}}]',
            "Let me check.",
            {},
            {"x": 1},
        ),  # A17
    ],
)
async def test_calls_as_models_write_them(
    engine: FakeEngine,
    make_client: Callable[..., Any],
    parser: str,
    text: str,
    content: str,
    schema: Any,
    arguments: Any,
    stream: bool,
) -> None:
    engine.text = text
    client = await make_client("--enable-auto-tool-choice", "--tool-call-parser", parser)
    api = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", http_client=client, max_retries=0)
    parameters = {"type": "object", "properties": {"x": schema}}
    asked: Any = {"model": "fake", "messages": QUESTION}
    asked["tools"] = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    if stream:
        async with api.chat.completions.stream(**asked) as events:
            answer = await events.get_final_completion()
    else:
        answer = await api.chat.completions.create(**asked)
    (choice,) = answer.choices
    assert (choice.message.content or "", choice.finish_reason) == (content, "tool_calls")
    assert names_and_arguments(choice.message.tool_calls) == [("f", arguments)]
