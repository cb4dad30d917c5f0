"""What clients send that is not to be had: hints are ignored, lists lose an element, other names are read, the rest is
refused; and whatever is refused is named as the client named it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.fake_engine import FakeEngine
from tests.server.test_tools import FLAGS
from vllm.entrypoints import fields
from vllm.entrypoints.fields import renamed

COMPLETIONS, CHAT, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hi"},
    CHAT: {"messages": HELLO},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": HELLO, "max_tokens": 8},
}
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
FLAT = {"type": "function", "name": "f", "parameters": PARAMETERS}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1000)


@pytest.fixture
def notices(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """What was logged, as if nothing had been noted before."""
    monkeypatch.setattr(fields, "_noted", set())
    logger = logging.getLogger("vllm")
    logger.propagate = True
    with caplog.at_level(logging.WARNING, "vllm"):
        yield lambda: caplog.text
    logger.propagate = False


async def answered(http: httpx.AsyncClient, path: str, **more: Any) -> dict[str, Any]:
    response = await http.post(path, json={**BODIES[path], **more})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def refused(http: httpx.AsyncClient, path: str, **more: Any) -> tuple[str, str | None]:
    """The message and, where the API has one, the place."""
    response = await http.post(path, json={**BODIES[path], **more})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["message"], error.get("param")


def roles_and_texts(engine: FakeEngine) -> list[tuple[str, str]]:
    """Of the last conversation that the template was given."""
    conversation, _ = engine.tokenizer.rendered[-1]
    return [(message["role"], message["content"]) for message in conversation]


HINTS: list[tuple[str, str, dict[str, Any]]] = [
    ("A1", MESSAGES, {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
    ("A1", MESSAGES, {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}),
    ("A1", MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("A1", MESSAGES, {"output_config": {"effort": "low", "task_budget": {"total": 5}}}),
    ("A3", RESPONSES, {"include": ["reasoning.encrypted_content"]}),
    ("A9", RESPONSES, {"text": {"verbosity": "low"}}),
    ("A9", CHAT, {"verbosity": "low"}),
    ("A9", RESPONSES, {"reasoning": {"effort": "low", "summary": "detailed"}}),
    ("A9", RESPONSES, {"max_tool_calls": 3, "prompt_cache_retention": "24h"}),
    ("A9", RESPONSES, {"stream_options": {"include_obfuscation": True}}),
    ("section 5", CHAT, {"store": True}),
    ("section 5", COMPLETIONS, {"cache_prompt": True}),
    ("section 5", CHAT, {"prediction": {"type": "content", "content": "hi"}}),
    ("section 5", CHAT, {"tools": [{"type": "custom", "custom": {"name": "g"}}]}),
]


@pytest.mark.parametrize(("case", "path", "hint"), HINTS)
async def test_a_hint_changes_nothing_and_is_logged(
    http: httpx.AsyncClient, engine: FakeEngine, notices: Callable[[], str], case: str, path: str, hint: Any
) -> None:
    await answered(http, path)
    await answered(http, path, **hint)
    (_, plain, plain_params), (_, hinted, params) = engine.seen
    assert plain == hinted and plain_params == params
    name = next(iter(hint))
    assert f"{path}: `{name}" in notices()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (MESSAGES, {"context_management": {}}),
        (MESSAGES, {"context_management": {"edits": []}}),
        (MESSAGES, {"thinking": {"type": "disabled"}}),  # A7
        (MESSAGES, {"thinking": {"type": "adaptive"}}),
        (RESPONSES, {"truncation": "auto"}),  # A9
        (RESPONSES, {"truncation": "disabled", "store": True, "tools": [], "tool_choice": "auto"}),
        (CHAT, {"extra_body": {}, "store": False, "tools": [], "tool_choice": "auto", "top_logprobs": 0}),
        (CHAT, {"include_reasoning": False, "best_of": 1, "n": 1}),
        (COMPLETIONS, {"extra_body": {}, "mirostat": 0, "typical_p": 1.0, "do_sample": True, "best_of": 2, "n": 2}),
        (COMPLETIONS, {"n_predict": None, "grammar": "", "format": "", "regex": None}),
    ],
)
async def test_what_asks_for_nothing_is_taken(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    await answered(http, path, **fields)
    assert engine.seen[-1][2].structured_outputs is None


def of_params(name: str, value: Any) -> Callable[[FakeEngine], bool]:
    return lambda engine: bool(getattr(engine.seen[-1][2], name) == value)


def of_form(name: str, value: Any) -> Callable[[FakeEngine], bool]:
    return lambda engine: bool(getattr(engine.seen[-1][2].structured_outputs, name) == value)


def of_template(name: str, value: Any) -> Callable[[FakeEngine], bool]:
    return lambda engine: bool(engine.tokenizer.kwargs.get(name) == value)


GRAMMAR = "root ::= [a-z]+"
OTHER_NAMES: list[tuple[str, dict[str, Any], Callable[[FakeEngine], bool]]] = [
    (COMPLETIONS, {"max_new_tokens": 3}, of_params("max_tokens", 3)),
    (COMPLETIONS, {"n_predict": 3, "stop_sequences": ["x"]}, of_params("stop", ["x"])),
    (COMPLETIONS, {"n_predict": -1}, lambda engine: engine.seen[-1][2].max_tokens > 900),
    (COMPLETIONS, {"random_seed": 7}, of_params("seed", 7)),
    (COMPLETIONS, {"min_new_tokens": 2}, of_params("min_tokens", 2)),
    (CHAT, {"max_output_tokens": 3}, of_params("max_tokens", 3)),
    (RESPONSES, {"max_tokens": 3}, of_params("max_tokens", 3)),
    (MESSAGES, {"stop": "x"}, of_params("stop", ["x"])),
    (COMPLETIONS, {"grammar": GRAMMAR}, of_form("grammar", GRAMMAR)),
    (CHAT, {"ebnf": GRAMMAR}, of_form("grammar", GRAMMAR)),
    (RESPONSES, {"regex": "a+"}, of_form("regex", "a+")),
    (CHAT, {"json_schema": SCHEMA}, of_form("json", SCHEMA)),
    (CHAT, {"format": SCHEMA}, of_form("json", SCHEMA)),
    (CHAT, {"format": "json"}, of_form("json", {"type": "object"})),
    (CHAT, {"response_format": {"type": "json_object", "schema": SCHEMA}}, of_form("json", SCHEMA)),  # A19
    (CHAT, {"response_format": {"type": "json_object"}}, of_form("json_object", True)),
    (RESPONSES, {"text": {"format": {"type": "json_object", "schema": SCHEMA}}}, of_form("json", SCHEMA)),  # A19
    (CHAT, {"response_format": {"type": "json_schema", "schema": SCHEMA}}, of_form("json", SCHEMA)),
    (CHAT, {"response_format": {"type": "json"}}, of_form("json_object", True)),
    (CHAT, {"response_format": {"type": "json", "value": SCHEMA}}, of_form("json", SCHEMA)),
    (CHAT, {"response_format": {"type": "regex", "value": "a"}}, of_form("regex", "a")),
    (CHAT, {"response_format": {"type": "grammar", "grammar": GRAMMAR}}, of_form("grammar", GRAMMAR)),
    (MESSAGES, {"output_format": {"type": "json_schema", "schema": SCHEMA}}, of_form("json", SCHEMA)),  # A20
    (MESSAGES, {"output_config": {"effort": "low"}, "output_format": {"type": "json_schema", "schema": SCHEMA}},
     of_form("json", SCHEMA)),
    (RESPONSES, {"reasoning_effort": "low"}, of_template("reasoning_effort", "low")),
    (CHAT, {"enable_thinking": False}, of_template("enable_thinking", False)),
    (CHAT, {"thinking": {"type": "disabled"}}, of_template("enable_thinking", False)),
    (MESSAGES, {"thinking": {"type": "disabled"}}, of_template("enable_thinking", False)),  # A7
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 5}}, of_template("enable_thinking", True)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked", "seen"), OTHER_NAMES)
async def test_other_names_are_read(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, asked: Any, seen: Callable[[FakeEngine], bool]
) -> None:
    await answered(http, path, **asked)
    assert seen(engine)


@pytest.mark.parametrize(
    ("path", "asked", "place", "says"),
    [
        (COMPLETIONS, {"max_new_tokens": 0}, "max_new_tokens", "max_new_tokens"),
        (COMPLETIONS, {"max_new_tokens": "x"}, "max_new_tokens", "integer"),
        (COMPLETIONS, {"max_new_tokens": 3, "max_tokens": 4}, "max_new_tokens", "another name of `max_tokens`"),
        (COMPLETIONS, {"stop_sequences": [""]}, "stop_sequences", "stop_sequences"),
        (CHAT, {"regex": ""}, "regex", "regex cannot be an empty"),
        (CHAT, {"format": 5}, "format", "JSON schema"),
        (CHAT, {"guided_regex": ""}, "guided_regex", "guided_regex cannot"),
        (CHAT, {"regex": "a", "response_format": {"type": "json_object"}}, "regex", "exclude one another"),
        (CHAT, {"response_format": {"type": "regex"}}, "response_format", "needs `pattern`"),
        (CHAT, {"repeat_penalty": 1.3}, "repeat_penalty", "`repetition_penalty`"),
        (CHAT, {"mirostat": 2}, "mirostat", "no such sampler"),
        (CHAT, {"options": {"num_ctx": 5}}, "options", "top level"),
        (CHAT, {"instructions": "Be brief."}, "instructions", "a field of `/v1/responses`"),
        (CHAT, {"system": "Be brief."}, "system", "a field of `/v1/messages`"),
        (COMPLETIONS, {"input": "a"}, "input", "a field of `/v1/responses`"),
        (RESPONSES, {"response_format": {"type": "json_object"}}, "response_format", "`text.format`"),
        (RESPONSES, {"prompt_logprobs": 1}, "prompt_logprobs", "a field of `/v1/c"),
        (MESSAGES, {"presence_penalty": 1}, None, "`presence_penalty` is a field of `/v1/"),
        (MESSAGES, {"response_format": {"type": "json_object"}}, None, "`output_config.format`"),
        (CHAT, {"thinking_token_budget": 5}, "thinking_token_budget", "no bound of its own"),
        # Names of the client's, in each API, of what is found out behind it.
        (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema", "text.format"),
        (RESPONSES, {"max_output_tokens": 2, "min_tokens": 5}, "min_tokens", "min_tokens"),
        (RESPONSES, {"max_tokens": 0}, "max_tokens", "max_tokens"),
        (RESPONSES, {"tools": [FLAT], "tool_choice": {"type": "function", "name": 5}}, "tool_choice.name", "a text"),
        (RESPONSES, {"tools": [{**FLAT, "strict": 5}]}, "tools[0].strict", "true or false"),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": 5}]}, None, "tools[0].input_schema"),
        (MESSAGES, {"stop_sequences": [""]}, None, "stop_sequences"),
        (MESSAGES, {"output_config": {"format": {"type": "xml"}}}, None, "output_config.format"),
        (MESSAGES, {"output_format": {"type": "json_schema"}}, None, "output_config.format.schema"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, None, "content[0].text"),
    ],
)  # fmt: skip
async def test_refusals_are_in_the_clients_terms(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, asked: Any, place: str | None, says: str
) -> None:
    message, param = await refused(http, path, **asked)
    assert says in message
    if path != MESSAGES:
        assert param == place
    ours = {"max_completion_tokens", "structured_outputs", "include_reasoning", "input_schema"} - {says}
    assert not [name for name in ours if name in message and name not in says]
    assert not engine.seen


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (MESSAGES, {"messages": [{"role": "user", "content": "x" * 2000}]}),
        (RESPONSES, {"input": "x" * 2000}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}),
        (COMPLETIONS, {"prompt": "x" * 2000}),
    ],
)
async def test_a_prompt_that_is_too_long_is_named_so(http: httpx.AsyncClient, path: str, asked: Any) -> None:
    _, param = await refused(http, path, **asked)
    assert param in (None, next(iter(asked)))


DEEP: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "label": 1}}},
     "response_format.json_schema.label"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "label": 1}]}]},
     "messages[].content[].label"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": True, "label": 1}}, "label"),
    (RESPONSES, {"text": {"label": 1}}, "text.label"),
    (RESPONSES, {"reasoning": {"label": 1}}, "reasoning.label"),
    (RESPONSES, {"input": [{"role": "user", "content": "a", "label": 1}]}, "input[].label"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "label": 1}]}]},
     "input[].content[].label"),
    (MESSAGES, {"thinking": {"type": "adaptive", "label": 1}}, "thinking.label"),
    (MESSAGES, {"output_config": {"label": 1}}, "output_config.label"),
    (MESSAGES, {"messages": [{"role": "user", "content": "a", "label": 1}]}, "messages[].label"),
    (MESSAGES, {"system": [{"type": "text", "text": "a", "label": 1}]}, "system[].label"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked", "place"), DEEP)
async def test_unknown_fields_are_logged_at_any_depth(
    http: httpx.AsyncClient, notices: Callable[[], str], path: str, asked: Any, place: str
) -> None:
    response = await http.post(path, json={**BODIES[path], **asked})
    assert response.status_code == 200, response.text
    assert f"`{place}` is an unknown field" in notices()


async def test_misspelt_names_are_refused_at_any_depth(http: httpx.AsyncClient) -> None:
    message, param = await refused(http, RESPONSES, text={"fromat": {"type": "text"}})
    assert param == "text.fromat" and "`text.format`" in message
    message, _ = await refused(http, MESSAGES, output_config={"formats": {}})
    assert "`output_config.format`" in message


# Lists that lose an element.


async def test_tools_that_do_not_run_here_are_left_out(
    make_client: Callable[..., Any], engine: FakeEngine, notices: Callable[[], str]
) -> None:  # A4
    http = await make_client(*FLAGS)
    engine.text = '<tool_call>{"name": "n__g", "arguments": {}}</tool_call>'
    space = {"type": "namespace", "name": "n", "description": "d", "tools": [{**FLAT, "name": "g"}, {"type": "x"}]}
    tools = [{"type": "web_search", "external_web_access": False}, FLAT, space]
    answer = await answered(http, RESPONSES, tools=tools)
    shown = engine.tokenizer.kwargs["tools"]
    assert [tool["function"]["name"] for tool in shown] == ["f", "n__g"]
    (call,) = answer["output"]
    assert (call["type"], call["namespace"], call["name"]) == ("function_call", "n", "g")
    assert answer["tools"] == tools
    assert "`tools[]` is left out" in notices() and "`tools[].tools[]` is left out" in notices()
    returned = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    await answered(http, RESPONSES, tools=tools, input=[{"role": "user", "content": "a"}, call, returned])
    conversation, _ = engine.tokenizer.rendered[-1]
    assert conversation[1]["tool_calls"][0]["function"]["name"] == "n__g"
    streamed = await http.post(RESPONSES, json={"input": "a", "tools": tools, "stream": True})
    assert streamed.text.count('"namespace":"n","name":"g"') >= 2 and "n__g" not in streamed.text
    hosted = {"type": "bash_20250124", "name": "bash"}
    await answered(http, MESSAGES, tools=[hosted, {"name": "f", "input_schema": PARAMETERS, "defer_loading": True}])
    assert [tool["function"]["name"] for tool in engine.tokenizer.kwargs["tools"]] == ["f"]
    assert "`tools[].defer_loading` has no effect" in notices()
    await answered(http, MESSAGES, tools=[hosted])
    assert engine.tokenizer.kwargs["tools"] is None


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools(make_client: Callable[..., Any], engine: FakeEngine, mode: str) -> None:  # A10
    """The others are as if they were not there; errors still count as the client does."""
    http = await make_client(*FLAGS)
    engine.text = '[{"name": "g", "parameters": {}}]' if mode == "required" else "Hm."
    chat = [FUNCTION, {"type": "function", "function": {"name": "g", "parameters": PARAMETERS}}]
    allowed: Any = {"mode": mode, "tools": [{"type": "function", "function": {"name": "g"}}, {"type": "mcp"}]}
    await answered(http, CHAT, tools=chat, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    flat = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]}
    answer = await answered(http, RESPONSES, tools=[FLAT, {**FLAT, "name": "g"}], tool_choice=flat)
    assert answer["tool_choice"] == flat and len(answer["tools"]) == 2
    for _, kwargs in engine.tokenizer.rendered:
        assert [tool["function"]["name"] for tool in kwargs["tools"]] == ["g"]
    for _, _, params in engine.seen:
        form = params.structured_outputs
        assert (form is not None) == (mode == "required")
        assert form is None or [one["properties"]["name"] for one in form.json["items"]["anyOf"]] == [{"const": "g"}]
    for choice, says in (
        ({**flat, "tools": [{"type": "function", "name": "other"}]}, "'other', which is not in `tools`"),
        ({**flat, "mode": "any"}, "tool_choice.mode"),
        ({**flat, "tools": []}, "tool_choice.tools"),
        ({"type": "mcp"}, "'mcp' is not supported"),
    ):
        message, _ = await refused(http, RESPONSES, tools=[FLAT], tool_choice=choice)
        assert says in message


async def test_blocks_of_newer_types(
    http: httpx.AsyncClient, engine: FakeEngine, notices: Callable[[], str]
) -> None:  # A6
    text = {"type": "text", "text": "seen"}
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "hey"}}
    found = {"type": "search_result", "source": "http://x", "title": "X", "content": [text]}
    inner = {"type": "document", "source": {"type": "content", "content": [text]}}
    messages = [
        {"role": "user", "content": [document, found, inner]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "yo"},
                                          {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                                          {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                                          {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "is_error": True,
                                      "content": [{"type": "tool_reference", "tool_name": "g"}, found]}]},
    ]  # fmt: skip
    await answered(http, MESSAGES, messages=messages)
    assert roles_and_texts(engine) == [
        ("user", "T\nhey\nX\nhttp://x\nseen\nseen"),
        ("assistant", "yo"),
        ("tool", "g\nX\nhttp://x\nseen"),
    ]
    for kind in ("redacted_thinking", "server_tool_use"):
        assert kind in notices() or "encrypted" in notices()
    for block, says in (
        ({"type": "image", "source": {}}, "'image' is not supported here"),
        ({"type": "document", "source": {"type": "base64", "data": "x"}}, "content[0].source.type"),
    ):
        message, _ = await refused(http, MESSAGES, messages=[{"role": "user", "content": [block]}])
        assert says in message


async def test_items_of_what_ran_elsewhere(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    """And of custom tools, whose calls are shown as those of functions."""
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "+a"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        {"type": "compaction", "encrypted_content": "x"},
    ]
    await answered(http, RESPONSES, input=items)
    conversation, _ = engine.tokenizer.rendered[-1]
    assert [message["role"] for message in conversation] == ["user", "assistant", "tool"]
    assert conversation[1]["tool_calls"][0]["function"] == {"name": "patch", "arguments": {"input": "+a"}}
    message, param = await refused(http, RESPONSES, input=[{"type": "mystery", "id": "x"}])
    assert param == "input[0].type" and "'mystery' is not supported" in message
    broken = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}
    assert (await refused(http, RESPONSES, input=[broken]))[1] == "input[0].arguments"


async def test_a_system_message_among_messages(http: httpx.AsyncClient, engine: FakeEngine) -> None:  # A2
    messages = [*HELLO, {"role": "system", "content": "Answer briefly."}]
    await answered(http, MESSAGES, messages=messages)
    assert roles_and_texts(engine) == [("system", "Answer briefly."), ("user", "hi")]
    late = [{"type": "text", "text": "And politely."}]
    await answered(http, MESSAGES, system="Be good.", messages=[*messages, {"role": "system", "content": late}])
    assert roles_and_texts(engine)[0] == ("system", "Be good.\n\nAnswer briefly.\n\nAnd politely.")
    billed = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.0df;"}, *late]
    await answered(http, MESSAGES, system=billed)
    assert roles_and_texts(engine)[0] == ("system", "And politely.")
    prefilled = [*HELLO, {"role": "assistant", "content": "We"}, {"role": "system", "content": "x"}]
    await answered(http, MESSAGES, messages=prefilled)
    assert engine.tokenizer.kwargs["continue_final_message"] is True


async def test_a_conversation_that_is_too_long_may_lose_its_beginning(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:  # A9
    answer = await answered(http, RESPONSES, input="x" * 1500 + "end", truncation="auto", max_output_tokens=10)
    assert answer["truncation"] == "auto"
    ids = engine.seen[-1][1]["prompt_token_ids"]
    assert len(ids) == 990 and bytes(ids).endswith(b"end\nassistant:")
    await answered(http, RESPONSES, input="x" * 1500, truncation="auto", max_output_tokens=5000)
    assert len(engine.seen[-1][1]["prompt_token_ids"]) == 999 and engine.seen[-1][2].max_tokens == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [(COMPLETIONS, "max_tokens"), (CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (CHAT, "max_new_tokens"),
     (RESPONSES, "max_output_tokens"), (MESSAGES, "max_tokens")],
)  # fmt: skip
async def test_more_tokens_than_the_context_holds(
    make_client: Callable[..., Any], engine: FakeEngine, notices: Callable[[], str], path: str, name: str
) -> None:  # N15
    """The pair of AWS's guide: a server of 128 tokens is asked for 1024."""
    engine.model_config.max_len = 128
    await answered(await make_client(), path, **{name: 1024})
    _, prompt, params = engine.seen[-1]
    assert params.max_tokens == 128 - len(prompt["prompt_token_ids"])
    assert f"{path}: `{name}` is more than the context has left" in notices()
    strict = await make_client("--strict-max-tokens")
    message, param = await refused(strict, path, **{name: 127})
    assert f"`{name}`=127 is more than the" in message and param in (None, name)
    await answered(strict, path, **{name: 100})


async def test_input_tokens_are_counted(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await http.post(f"{RESPONSES}/input_tokens", json={"input": "hi", "instructions": "Be brief."})
    assert answer.json() == {
        "object": "response.input_tokens",
        "input_tokens": len("system: Be brief.\nuser: hi\nassistant:"),
    }
    assert not engine.seen
    refused = await http.post(f"{RESPONSES}/input_tokens", json={"input": []})
    assert refused.json()["error"]["param"] == "input"


# Names.


@given(st.lists(st.sampled_from(["stop", "max_tokens", "tools[0]", "tools[0].function", "a.b"]), unique=True))
def test_names_are_translated_once(ours: list[str]) -> None:
    """None is translated twice, and no part of a longer name is taken for one."""
    names = {name: f"their_{name}" for name in ours}
    for name in ("stop", "max_tokens", "tools[0]", "tools[0].function", "a.b", "unstoppable", "tools[0]x", "aa.b"):
        prefixes = [known for known in ours if name == known or name.startswith((f"{known}.", f"{known}["))]
        longest = max(prefixes, key=len, default=None)
        expected = name if longest is None else names[longest] + name[len(longest) :]
        assert renamed(name, names) == expected
        assert renamed(f"It says `{name}`=3.", names) == f"It says `{expected}`=3."
    assert renamed("they stop here", names) == "they stop here"
