"""What becomes of a request's fields: known, unknown, misspelt, unsupported, malformed."""

from __future__ import annotations

import gzip
import logging
from typing import Any

import fastapi
import httpx
import pydantic
import pytest

from tests.server.fake_engine import MAX_MODEL_LEN, FakeEngine
from vllm.entrypoints.openai.errors import install_error_handlers
from vllm.entrypoints.utils import edit_distance, nearest_field

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


async def refused(http: httpx.AsyncClient, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    response = await http.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == status
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("temperature", "temprature", 1), ("topk", "top_k", 1), ("stop", "sotp", 1), ("abc", "xyz", 3), ("", "ab", 2)],
)
def test_edit_distance(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right, 5) == distance
    assert edit_distance(right, left, 5) == distance
    assert edit_distance(left, right, 0) == 1


def test_nearest_field() -> None:
    known = ["temperature", "top_k", "top_p", "n", "stop", "max_tokens", "min_tokens"]
    assert nearest_field("temprature", known) == "temperature"
    assert nearest_field("maxTokens", known) == "max_tokens"
    assert nearest_field("max-tokens", known) == "max_tokens"
    assert nearest_field("topk", known) == "top_k"
    assert nearest_field("k", known) is None
    assert nearest_field("logging_label", known) is None
    assert nearest_field("x" * 100_000, known) is None


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("temprature", "temperature"), ("topK", "top_k"), ("max_token", "max_tokens"), ("stops", "stop")],
)
async def test_misspelt_field_is_refused_by_name(http: httpx.AsyncClient, typo: str, meant: str) -> None:
    error = await refused(http, COMPLETIONS, {"prompt": "a", typo: 1})
    assert typo in error["message"] and f"`{meant}`" in error["message"]
    assert error["param"] == typo


async def test_unknown_field_is_accepted_and_logged(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vllm")
    logger.propagate = True
    with caplog.at_level(logging.WARNING, "vllm"):
        response = await http.post(COMPLETIONS, json={"prompt": "a", "tracking_label": 1, "max_tokens": 1})
    logger.propagate = False
    assert response.status_code == 200
    assert "tracking_label" in caplog.text


async def test_misspelt_field_of_a_nested_object(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usages": True}}
    assert "`include_usage`" in (await refused(http, COMPLETIONS, body))["message"]


async def test_flood_of_unknown_fields(http: httpx.AsyncClient) -> None:
    await refused(http, COMPLETIONS, {"prompt": "a", **{f"label_number_{i}": 1 for i in range(1000)}})


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (COMPLETIONS, "suffix", "end"),
        (COMPLETIONS, "best_of", 3),
        (COMPLETIONS, "prompt_embeds", "AAAA"),
        (COMPLETIONS, "kv_transfer_params", {}),
        (COMPLETIONS, "extra_body", {"top_k": 1}),
        (CHAT, "audio", {"voice": "x"}),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "modalities", ["text", "audio"]),
    ],
)
async def test_unsupported_field_is_refused_by_name(http: httpx.AsyncClient, path: str, field: str, value: Any) -> None:
    body = {"prompt": "a"} if path == COMPLETIONS else {"messages": HELLO}
    error = await refused(http, path, {**body, field: value})
    assert f"`{field}`" in error["message"]
    assert error["param"] == field


@pytest.mark.parametrize(
    "fields",
    [
        {"suffix": None},
        {"use_beam_search": False},
        {"best_of": 1},
        {"response_format": {"type": "text"}},
        {"length_penalty": 1.0},
        {"vllm_xargs": {}},
        {"user": "me", "metadata": {"a": "b"}},
        {
            "n": None,
            "temperature": None,
            "top_p": None,
            "stop": None,
            "logit_bias": None,
            "stream": None,
            "logprobs": None,
        },
    ],
)
async def test_values_that_ask_for_nothing_are_accepted(http: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    response = await http.post(COMPLETIONS, json={"prompt": "a", **fields})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        [],
        [""],
        ["a", ""],
        [[]],
        [[1], []],
        [1, "a"],
        ["a", 1],
        ["a", [1]],
        [1.5],
        [True],
        {"a": 1},
        7,
        [None],
        [[None]],
    ],
)
async def test_malformed_prompt(http: httpx.AsyncClient, prompt: Any) -> None:
    error = await refused(http, COMPLETIONS, {"prompt": prompt})
    assert error["param"] == "prompt"


@pytest.mark.parametrize("prompt", [[-1], [256], [10**30], [[97], [-1]]])
@pytest.mark.parametrize("echo", [False, True])
async def test_token_out_of_vocabulary(http: httpx.AsyncClient, engine: FakeEngine, prompt: Any, echo: bool) -> None:
    error = await refused(http, COMPLETIONS, {"prompt": prompt, "echo": echo, "max_tokens": 1})
    assert "out of vocabulary" in error["message"] and not engine.seen


async def test_missing_prompt(http: httpx.AsyncClient) -> None:
    error = await refused(http, COMPLETIONS, {"max_tokens": 1})
    assert "prompt" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": 2},
        {"n": 0},
        {"n": 10**9},
        {"n": 2, "temperature": 0},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"repetition_penalty": 0},
        {"seed": 2**63},
        {"stop": ["a", ""]},
        {"stop": [1]},
        {"logit_bias": {"one": 1.0}},
        {"logit_bias": {"--1": 1.0}},
        {"logit_bias": [1]},
        {"allowed_token_ids": []},
        {"bad_words": [""]},
        {"logprobs": -2},
        {"prompt_logprobs": 1, "stream": True},
        {"stream_options": {"include_usage": True}},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": MAX_MODEL_LEN + 1},
        {"truncation_side": "middle"},
        {"request_id": "a\nb"},
        {"request_id": "x" * 129},
        {"priority": 2**70},
    ],
)
async def test_value_out_of_range(http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]) -> None:
    error = await refused(http, COMPLETIONS, {"prompt": "a", **fields})
    named = [name for name in fields if name in error["message"] or name == error["param"]]
    assert named, error
    assert not engine.seen


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [1]},
        {"messages": [{"content": "a"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": 5, "content": "a"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [7]}]},
        {"messages": [{"role": "user", "content": [{"type": 5, "text": "a"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}
            ]
        },
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": "x"}]},
        {"messages": HELLO * 5000},
        {"messages": HELLO, "top_logprobs": 1},
        {"messages": HELLO, "tool_choice": "required"},
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "always"},
        {"messages": HELLO, "continue_final_message": True},
        {"messages": HELLO, "chat_template": "{{ 1 }}"},
        {"messages": HELLO, "chat_template_kwargs": {"tokenize": True}},
        {"messages": HELLO, "chat_template_kwargs": {"chat_template": "x"}},
        {"messages": HELLO, "max_completion_tokens": 0},
    ],
)
async def test_malformed_chat(http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]) -> None:
    await refused(http, CHAT, fields)
    assert not engine.seen


async def test_media_part_is_named(http: httpx.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = await refused(http, CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert "image_url" in error["message"] and "messages[0].content[0]" in error["message"]


async def test_unknown_model(http: httpx.AsyncClient) -> None:
    for path, body in [(COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO}), ("/tokenize", {"prompt": "a"})]:
        error = await refused(http, path, {**body, "model": "gpt-4"}, 404)
        assert error["type"] == "NotFoundError" and error["param"] == "model"
        assert "The model `gpt-4` does not exist." in error["message"]


async def test_model_may_be_left_out(http: httpx.AsyncClient) -> None:
    for model in (None, "", "fake", "alias"):
        response = await http.post(COMPLETIONS, json={"prompt": "a", "model": model})
        assert response.json()["model"] == "fake"


async def test_context_length(http: httpx.AsyncClient) -> None:
    """The fake tokenizer gives a token a character, and one before them."""
    for length in (MAX_MODEL_LEN, MAX_MODEL_LEN + 1, 10 * MAX_MODEL_LEN):
        error = await refused(http, COMPLETIONS, {"prompt": "a" * (length - 1)})
        assert f"maximum context length is {MAX_MODEL_LEN} tokens" in error["message"]
    response = await http.post(COMPLETIONS, json={"prompt": "a" * (MAX_MODEL_LEN - 2), "max_tokens": 9})
    assert response.json()["usage"]["completion_tokens"] == 1
    assert response.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"prompt": "a", "temperature": NaN}', "application/json"),
        (b'{"prompt": "a", "temperature": Infinity}', "application/json"),
        (b'{"prompt": "a"}', "text/plain"),
        (b"prompt=a", "application/x-www-form-urlencoded"),
    ],
)
async def test_malformed_body(http: httpx.AsyncClient, content: bytes, media_type: str) -> None:
    response = await http.post(COMPLETIONS, content=content, headers={"Content-Type": media_type})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == 400


async def test_body_that_is_encoded(http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for content in (gzip.compress(b'{"prompt": "a"}'), b'{"prompt": "a"}'):
        response = await http.post(COMPLETIONS, content=content, headers=headers)
        assert response.status_code == 400 and "Content-Encoding" in response.json()["error"]["message"]
    headers["Content-Encoding"] = "identity"
    assert (await http.post(COMPLETIONS, content=content, headers=headers)).status_code == 200


async def test_unknown_route_and_method(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nothing")).json()["error"]["code"] == 404
    response = await http.get(COMPLETIONS)
    assert response.status_code == 405 and response.json()["error"]["code"] == 405


async def test_many_prompts(http: httpx.AsyncClient) -> None:
    await refused(http, COMPLETIONS, {"prompt": ["a"] * 1025})
    error = await refused(http, COMPLETIONS, {"prompt": ["a"] * 1024, "n": 17})
    assert error["param"] == "n"


async def test_error_does_not_repeat_the_value(http: httpx.AsyncClient) -> None:
    secret = "my-secret-text" * 100
    response = await http.post(COMPLETIONS, json={"prompt": "a", "temperature": secret})
    assert response.status_code == 400 and "my-secret" not in response.text


async def test_unexpected_error_says_nothing(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("object at 0x7f00deadbeef in /etc/secret")
    response = await http.post(COMPLETIONS, json={"prompt": "a"})
    assert response.status_code == 500
    assert "0x7f" not in response.text and "secret" not in response.text


async def test_the_form_of_a_body_is_no_field(http: httpx.AsyncClient) -> None:
    for path in ("/invocations", "/tokenize"):
        assert (await refused(http, path, {"prompt": []}))["param"] == "prompt"
        assert (await refused(http, path, {"messages": 5}))["param"] == "messages"
    error = await refused(http, "/invocations", {"prompt": "a", "logit_bias": {"chat": "x"}})
    assert error["param"] == "logit_bias.chat"


class Labelled(pydantic.BaseModel):
    chat: int
    body: int


async def test_fields_that_are_called_as_a_form_is() -> None:
    app = fastapi.FastAPI()
    install_error_handlers(app)

    @app.post("/")
    async def take(request: Labelled) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await refused(http, "/", {"chat": "x", "body": 1}))["param"] == "chat"
        assert (await refused(http, "/", {"chat": 1, "body": "x"}))["param"] == "body"


def deep(levels: int, **around: Any) -> dict[str, Any]:
    value: Any = []
    for _ in range(levels):
        value = {"properties": {"a": value}}
    return {**around, "parameters": value}


@pytest.mark.parametrize("levels", [80, 230])
async def test_nesting_is_bounded_for_all_that_walks_a_request(http: httpx.AsyncClient, levels: int) -> None:
    """Beyond it, writing a request's `tools` into the answer failed, and so did a walk through a schema."""
    bodies = {
        "/v1/responses": {"input": "a", "tools": [deep(levels, type="function", name="f")]},
        "/v1/messages": {"model": "fake", "max_tokens": 2, "messages": HELLO, "metadata": deep(levels)},
        CHAT: {"messages": HELLO, "metadata": deep(levels)},
        COMPLETIONS: {"prompt": "a", "metadata": deep(levels)},
    }
    for path, body in bodies.items():
        response = await http.post(path, json=body)
        assert response.status_code == 400 and "nested more than 128 levels" in response.text, path
    assert (await http.post(CHAT, json={"messages": HELLO, "metadata": deep(40)})).status_code == 200


async def test_arguments_that_come_back(http: httpx.AsyncClient) -> None:
    def body(arguments: str) -> dict[str, Any]:
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call]}]}

    for arguments in ("[" * 200 + "]" * 200, '{"a": NaN}', "{"):
        assert (await refused(http, CHAT, body(arguments)))["param"].endswith("arguments")
    for arguments in ("5", "null", '"a"', '{"a": 1e999, "b": "\\ud800"}', "9" * 5000, "[" * 100 + "]" * 100):
        assert (await http.post(CHAT, json=body(arguments))).status_code == 200, arguments
