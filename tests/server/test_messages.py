"""`/v1/messages` through Anthropic's client over the fake engine: blocks, events, tools, errors in that API's shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine
from tests.server.live import live_server
from tests.server.test_answers import following
from tests.server.test_tools import EXPECTED, FLAGS, TEXT

anthropic = pytest.importorskip("anthropic")

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
ASKED: dict[str, Any] = {"model": "fake", "max_tokens": 4, "messages": HELLO}
TOOLS: list[Any] = [
    {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}},
    {"name": "time", "input_schema": {"type": "object"}},
]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1000)


@pytest.fixture
async def make_api(engine: FakeEngine) -> AsyncIterator[Callable[..., Any]]:
    """make_api(*options): a client of a server with those options, behind a socket: its HTTP library is its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*words: str, **options: Any) -> Any:
            server = await stack.enter_async_context(live_server(engine, *words))
            given = {"api_key": "none", "base_url": server.url, "max_retries": 0, **options}
            return await stack.enter_async_context(anthropic.AsyncAnthropic(**given))

        yield make


@pytest.fixture
async def api(make_api: Callable[..., Any]) -> Any:
    return await make_api()


@pytest.fixture
async def parsing(make_api: Callable[..., Any], engine: FakeEngine) -> Any:
    """Of a server with parsers, whose model says `TEXT`."""
    engine.text = TEXT
    return await make_api(*FLAGS)


async def test_text(api: Any, engine: FakeEngine) -> None:
    drawn = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    answer = await api.messages.create(**ASKED, stop_sequences=["x"], extra_body=drawn)
    assert answer.id.startswith("msg_") and (answer.type, answer.role, answer.model) == ("message", "assistant", "fake")
    assert [(block.type, block.text) for block in answer.content] == [("text", following("assistant:", 4))]
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.output_tokens == 4
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == len("user: hello\nassistant:")
    params = engine.seen[0][2]
    assert (params.temperature, params.top_k, params.top_p, params.stop) == (0.5, 3, 0.9, ["x"])
    assert params.max_tokens == 4


async def test_stop_reasons(api: Any, engine: FakeEngine) -> None:
    engine.text = "Done."
    assert (await api.messages.create(**ASKED)).stop_reason == "end_turn"
    engine.stop_reason = "x"
    answer = await api.messages.create(**ASKED, stop_sequences=["x"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "x")
    engine.stop_reason = 7
    answer = await api.messages.create(**ASKED)
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)


async def test_conversation(api: Any, engine: FakeEngine) -> None:
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Wait."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
            {"type": "tool_result", "tool_use_id": "t2"}, {"type": "text", "text": "And?"}]},
    ]  # fmt: skip
    system: Any = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    await api.messages.create(**{**ASKED, "messages": messages}, system=system, output_config={"effort": "low"})
    ((conversation, kwargs),) = engine.tokenizer.rendered
    (call,) = conversation[2].pop("tool_calls")
    assert (call["id"], call["function"]) == ("t1", {"name": "weather", "arguments": {"city": "Paris"}})
    assert conversation == [
        {"role": "system", "content": "Be\nbrief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": "And?"},
    ]
    assert kwargs["add_generation_prompt"] is True and kwargs["reasoning_effort"] == "low"
    prefilled = [*HELLO, {"role": "assistant", "content": "We"}]
    await api.messages.create(**{**ASKED, "messages": prefilled})
    kwargs = engine.tokenizer.kwargs
    assert kwargs["continue_final_message"] is True and kwargs["add_generation_prompt"] is False


def check_blocks(answer: Any) -> None:
    """Of `TEXT`."""
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (answer.content[0].thinking, answer.content[1].text) == ("I need both.", "One moment.")
    assert [(block.name, block.input) for block in answer.content[2:]] == EXPECTED
    assert len({block.id for block in answer.content[2:]}) == 2
    assert answer.stop_reason == "tool_use"


async def test_tools_and_thinking(parsing: Any, engine: FakeEngine) -> None:
    check_blocks(await parsing.messages.create(**ASKED, tools=TOOLS))
    one: Any = {"type": "auto", "disable_parallel_tool_use": True}
    answer = await parsing.messages.create(**ASKED, tools=TOOLS, tool_choice=one)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    answer = await parsing.messages.create(**ASKED, tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in answer.content] == ["thinking", "text"] and answer.stop_reason == "end_turn"
    answer = await parsing.messages.create(**ASKED, thinking={"type": "disabled"})
    assert [block.type for block in answer.content] == ["text"]


async def test_events(parsing: Any) -> None:
    stream = await parsing.messages.create(**ASKED, tools=TOOLS, stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "tool_use" and events[-2].usage.output_tokens == len(TEXT)
    is_open: int | None = None
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert is_open is None
            is_open = event.index
        assert event.index == is_open
        if event.type == "content_block_stop":
            is_open = None
    assert is_open is None


async def test_stream_helper(parsing: Any) -> None:
    async with parsing.messages.stream(**ASKED, tools=TOOLS) as stream:
        check_blocks(await stream.get_final_message())


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_forced_calls(api: Any, engine: FakeEngine, choice: Any) -> None:
    engine.text = "{}" if choice["type"] == "tool" else '[{"name": "weather", "parameters": {}}]'
    answer = await api.messages.create(**ASKED, tools=TOOLS, tool_choice=choice)
    assert [(block.type, block.name, block.input) for block in answer.content] == [("tool_use", "weather", {})]
    assert answer.stop_reason == "tool_use" and engine.seen[0][2].structured_outputs is not None


async def test_form(api: Any, engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await api.messages.create(**ASKED, output_config={"format": {"type": "json_schema", "schema": schema}})
    constraint = engine.seen[0][2].structured_outputs
    assert constraint is not None and constraint.json == schema


async def test_count_tokens(api: Any, engine: FakeEngine) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    count = await api.messages.count_tokens(**asked, system="Be brief.")
    assert count.input_tokens == len("system: Be brief.\nuser: hello\nassistant:")
    assert not engine.seen


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "`messages`"),
        ({"messages": [{"role": "system", "content": "a"}]}, "must hold a turn"),
        ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": 1}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, r"content\[0\].type` 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]}, "input"),
        ({"system": [{"type": "image"}]}, r"system\[0\].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}}, "none of"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tools": TOOLS, "tool_choice": {"type": "sometimes"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequence": ["a"]}, "stop_sequences"),
    ],
)
async def test_faults(api: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        await api.messages.create(**ASKED, extra_body=fields)
    assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "invalid_request_error"


async def test_errors_have_the_shape_of_the_api(make_api: Callable[..., Any], engine: FakeEngine) -> None:
    api = await make_api()
    with pytest.raises(anthropic.NotFoundError) as missing:
        await api.messages.create(**{**ASKED, "model": "other"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    engine.failure = RuntimeError("secret")
    with pytest.raises(anthropic.InternalServerError) as broken:
        await api.messages.create(**ASKED)
    assert broken.value.body["error"]["type"] == "api_error" and "secret" not in str(broken.value.body)
    small = await make_api("--max-body-bytes", "20")
    with pytest.raises(anthropic.APIStatusError) as large:
        await small.messages.create(**ASKED)
    assert large.value.status_code == 413 and large.value.body["error"]["type"] == "request_too_large"


async def test_stream_that_fails(api: Any, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = RuntimeError("secret"), 2
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in await api.messages.create(**ASKED, stream=True):
            pass
    assert caught.value.body["error"]["type"] == "api_error" and "secret" not in str(caught.value.body)


async def test_keys(make_api: Callable[..., Any], make_client: Callable[..., Any]) -> None:
    async def ask(**options: Any) -> Any:
        return await (await make_api("--api-key", "right", **options)).messages.create(**ASKED)

    assert (await ask(api_key="right")).type == "message"
    assert (await ask(auth_token="right", api_key=None)).type == "message"
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await ask(api_key="wrong")
    assert caught.value.body["error"]["type"] == "authentication_error"
    both = {"authorization": "Bearer right", "x-api-key": "wrong"}
    http = await make_client("--api-key", "right")
    assert (await http.get("/v1/models", headers=both)).status_code == 401


async def test_raw_stream(http: httpx.AsyncClient) -> None:
    """No `[DONE]`, and each event is named as its data says."""
    text = (await http.post("/v1/messages", json={**ASKED, "stream": True})).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    assert "[DONE]" not in text and all(len(lines) == 2 for lines in events)
    for name, data in events:
        assert f'"type":"{name.removeprefix("event: ")}"' in data
