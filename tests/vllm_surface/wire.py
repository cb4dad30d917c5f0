"""The same requests for vLLM's server and ours, and the shape of each answer: which fields, of which type.

An answer's shape is {path: type}, such as {"choices[].message.reasoning": "null"}; of fields that say what something
is (`TELLING`), the value stands there instead. Of a stream it is the list of its events' shapes, equal neighbours once.
Both servers have a random model, so only requests whose answers do not depend on it are among these.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

import httpx

MODEL = "test-model"
SERVER_OPTIONS = ["--served-model-name", MODEL, "--max-model-len", "512", "--max-num-seqs", "8",
                  "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
                  "--structured-outputs-config", '{"disable_any_whitespace": true}']  # fmt: skip
TELLING = {"object", "finish_reason", "stop_reason", "type", "role", "status", "owned_by", "code", "index",
           "output_index", "content_index", "truncation", "tool_choice", "service_tier", "incomplete_details", "reason",
           "stop_sequence", "max_output_tokens"}  # fmt: skip
COUNTS = {"completion_tokens", "output_tokens"}
"""Told where the request does not say how many."""
NAMED_BY_TOKENS = {"prompt_logprobs", "top_logprobs"}
"""Fields that hold objects whose names are tokens."""

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "look", "description": "Look at a.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
USAGE = {"stream_options": {"include_usage": True}}
TEXT = {"prompt": "hello", "max_tokens": 4, "temperature": 0, "ignore_eos": True, "model": MODEL}
CHAT = {"messages": HELLO, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "model": MODEL}
WRITTEN = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
CALL = {**CHAT, "max_tokens": 200, "ignore_eos": False, "tools": [TOOL], "structured_outputs": {"choice": [WRITTEN]}}
ITEM = {"input": "hello", "max_output_tokens": 4, "temperature": 0, "ignore_eos": True, "model": MODEL}
TURN = {"messages": HELLO, "max_tokens": 4, "temperature": 0, "model": MODEL}
WORD = {"structured_outputs": {"choice": ["yes"]}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
FLAT_TOOL = {"type": "function", **FUNCTION}
CALLED = {
    **ITEM,
    "max_output_tokens": 200,
    "ignore_eos": False,
    "tools": [FLAT_TOOL],
    "structured_outputs": {"choice": [WRITTEN]},
}
COMPLETIONS, CHATS, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"

CASES: dict[str, tuple[str, dict[str, Any] | str | None]] = {
    "models": ("/v1/models", None),
    "version": ("/version", None),
    "health": ("/health", None),
    "ping": ("/ping", None),
    "no such route": ("/v1/nothing", None),
    "a GET where a POST is due": (CHATS, None),
    "completion": (COMPLETIONS, TEXT),
    "completion, no max_tokens": (COMPLETIONS, {key: TEXT[key] for key in TEXT if key != "max_tokens"}),
    "completion, max_tokens null": (COMPLETIONS, {**TEXT, "max_tokens": None}),
    "completion, logprobs": (COMPLETIONS, {**TEXT, "logprobs": 1}),
    "completion, logprobs 0": (COMPLETIONS, {**TEXT, "logprobs": 0}),
    "completion, echo": (COMPLETIONS, {**TEXT, "echo": True, "logprobs": 1}),
    "completion, prompt_logprobs": (COMPLETIONS, {**TEXT, "prompt_logprobs": 1}),
    "completion, token ids": (COMPLETIONS, {**TEXT, "return_token_ids": True}),
    "completion, n": (COMPLETIONS, {**TEXT, "n": 2, "temperature": 1, "seed": 1}),
    "completion, two prompts": (COMPLETIONS, {**TEXT, "prompt": ["a", "b"]}),
    "completion, beams": (COMPLETIONS, {**TEXT, "n": 2, "use_beam_search": True}),
    "completion, stream": (COMPLETIONS, {**TEXT, "stream": True}),
    "completion, stream, usage": (COMPLETIONS, {**TEXT, "stream": True, **USAGE}),
    "completion, stream, logprobs, token ids": (
        COMPLETIONS, {**TEXT, "stream": True, "logprobs": 1, "return_token_ids": True}),
    "completion, stream, usage on each": (
        COMPLETIONS, {**TEXT, "stream": True,
                      "stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "completion, stop text": (COMPLETIONS, {**TEXT, "structured_outputs": {"choice": ["one two"]}, "stop": "two"}),
    "completion, wrong value": (COMPLETIONS, {**TEXT, "temperature": -1}),
    "completion, wrong type": (COMPLETIONS, {**TEXT, "temperature": "warm"}),
    "completion, no prompt": (COMPLETIONS, {"model": MODEL}),
    "completion, empty prompt": (COMPLETIONS, {**TEXT, "prompt": ""}),
    "completion, too long": (COMPLETIONS, {**TEXT, "prompt": "hello " * 600}),
    "completion, no such model": (COMPLETIONS, {**TEXT, "model": "other"}),
    "completion, no JSON": (COMPLETIONS, "{"),
    "completion, max_tokens beyond the length": (COMPLETIONS, {**TEXT, "max_tokens": 1024}),
    "chat": (CHATS, CHAT),
    "chat, no max_tokens": (CHATS, {"messages": HELLO, "temperature": 0, "model": MODEL, **WORD}),
    "chat, max_tokens beyond the length": (CHATS, {**CHAT, "max_tokens": 1024, "ignore_eos": False, **WORD}),
    "chat, logprobs": (CHATS, {**CHAT, "logprobs": True, "top_logprobs": 1}),
    "chat, logprobs of sampled tokens": (CHATS, {**CHAT, "logprobs": True}),
    "chat, prompt_logprobs": (CHATS, {**CHAT, "prompt_logprobs": 1}),
    "chat, token ids": (CHATS, {**CHAT, "return_token_ids": True}),
    "chat, prompt text": (CHATS, {**CHAT, "return_prompt_text": True}),
    "chat, n": (CHATS, {**CHAT, "n": 2, "temperature": 1, "seed": 1}),
    "chat, stream": (CHATS, {**CHAT, "stream": True}),
    "chat, stream, usage": (CHATS, {**CHAT, "stream": True, **USAGE}),
    "chat, stream, logprobs, token ids": (
        CHATS, {**CHAT, **WORD, "ignore_eos": False, "stream": True, "logprobs": True, "top_logprobs": 1,
                "return_token_ids": True}),
    "chat, choice": (CHATS, {**CHAT, **WORD, "ignore_eos": False}),
    "chat, schema": (CHATS, {**CHAT, "max_tokens": 100, "ignore_eos": False, "response_format": FORMAT}),
    "chat, tools not called": (CHATS, {**CHAT, "tools": [TOOL]}),
    "chat, tools, none": (CHATS, {**CHAT, "tools": [TOOL], "tool_choice": "none"}),
    "chat, tool called": (CHATS, CALL),
    "chat, tool called, stream": (CHATS, {**CALL, "stream": True}),
    "chat, no messages": (CHATS, {"model": MODEL}),
    "chat, empty messages": (CHATS, {**CHAT, "messages": []}),
    "chat, top_logprobs alone": (CHATS, {**CHAT, "top_logprobs": 1}),
    "chat, n 0": (CHATS, {**CHAT, "n": 0}),
    "response": (RESPONSES, ITEM),
    "response, stream": (RESPONSES, {**ITEM, "stream": True}),
    "response, logprobs": (RESPONSES, {**ITEM, "include": ["message.output_text.logprobs"], "top_logprobs": 1}),
    "response, tool called": (RESPONSES, CALLED),
    "response, tool called, stream": (RESPONSES, {**CALLED, "stream": True}),
    "response, done": (RESPONSES, {**ITEM, "max_output_tokens": 20, "ignore_eos": False, **WORD}),
    "response, wrong value": (RESPONSES, {**ITEM, "temperature": -1}),
    "response, no such one": ("/v1/responses/resp_0", None),
    "message": (MESSAGES, TURN),
    "message, stream": (MESSAGES, {**TURN, "stream": True}),
    "message, wrong value": (MESSAGES, {**TURN, "temperature": -1}),
    "message, no max_tokens": (MESSAGES, {"messages": HELLO, "model": MODEL}),
    "message, no such model": (MESSAGES, {**TURN, "model": "other"}),
    "message, count": ("/v1/messages/count_tokens", {"messages": HELLO, "model": MODEL}),
    "tokenize": ("/tokenize", {"prompt": "hello", "model": MODEL}),
    "tokenize, strings": ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    "tokenize, chat": ("/tokenize", {"messages": HELLO, "model": MODEL}),
    "detokenize": ("/detokenize", {"tokens": [40, 41], "model": MODEL}),
    "embeddings of a generator": ("/v1/embeddings", {"input": "hello", "model": MODEL}),
}  # fmt: skip
"""Name -> path and body; without a body it is a GET."""

Answer = dict[str, Any]


def answers(client: httpx.Client) -> dict[str, Answer]:
    """Every case's {"status": ..., "shapes": [...]}."""
    return {
        name: _answer(client, path, body, TELLING | COUNTS if "max_tokens" in name else TELLING)
        for name, (path, body) in CASES.items()
    }


def routes(client: httpx.Client) -> list[str]:
    """ "POST /v1/completions" and so on, as the server's own document lists them."""
    paths = client.get("/openapi.json").json()["paths"]
    return sorted(f"{method.upper()} {path}" for path, methods in paths.items() for method in methods)


def _answer(client: httpx.Client, path: str, body: dict[str, Any] | str | None, telling: Set[str]) -> Answer:
    if body is None:
        response = client.get(path)
    else:
        content = body if isinstance(body, str) else json.dumps(body)
        response = client.post(path, content=content, headers={"content-type": "application/json"})
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return {"status": response.status_code, "shapes": _of_stream(response.text, telling)}
    try:
        return {"status": response.status_code, "shapes": [shape(response.json(), telling)]}
    except ValueError:
        return {"status": response.status_code, "shapes": ["no JSON"] if response.text else []}


def _of_stream(text: str, telling: Set[str]) -> list[Any]:
    shapes: list[Any] = []
    for event in filter(None, text.split("\n\n")):
        data = next(line.removeprefix("data: ") for line in event.splitlines() if line.startswith("data:"))
        found = data if data == "[DONE]" else shape(json.loads(data), telling)
        if not shapes or shapes[-1] != found:
            shapes.append(found)
    return shapes


def shape(value: Any, telling: Set[str] = frozenset(TELLING)) -> dict[str, str]:
    """Every place of a JSON value -> its type, or its value where that tells what it is."""
    kinds: dict[str, set[str]] = {}
    _walk(value, "", "", kinds, telling)
    return {place: "|".join(sorted(found)) for place, found in sorted(kinds.items())}


def _walk(value: Any, place: str, name: str, kinds: dict[str, set[str]], telling: Set[str]) -> None:
    if isinstance(value, dict):
        if place.endswith("[]") or not value:
            kinds.setdefault(place, set()).add("object")
        for key, inner in value.items():
            step = "*" if name in NAMED_BY_TOKENS and place.endswith("[]") and _is_token_table(value) else key
            _walk(inner, f"{place}.{step}".lstrip("."), key, kinds, telling)
    elif isinstance(value, list):
        kinds.setdefault(place, set()).add("array")
        for inner in value:
            _walk(inner, f"{place}[]", name, kinds, telling)
    else:
        kinds.setdefault(place, set()).add(_kind(value, name, telling))


def _is_token_table(value: dict[str, Any]) -> bool:
    return "token" not in value


def _kind(value: Any, name: str, telling: Set[str]) -> str:
    if name in telling and value is not None:
        return repr(value)
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
    return names[type(value)]
