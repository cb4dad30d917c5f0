"""Every request field of vLLM's completions and chat, one by one: what it does, or that it is refused by name.

The list is that of vLLM's own reference. A field is honoured if what it says can be seen: in what the engine was given,
in the prompt, or in the answer. A field that does neither must be a label of the client's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.openai.protocol.foreign import SAMPLERS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hello", "max_tokens": 3},
    CHAT: {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
Seen = Callable[[FakeEngine, dict[str, Any]], bool]


def param(name: str, value: Any) -> Seen:
    return lambda engine, _: getattr(engine.seen[-1][2], name) == value


def constraint(name: str, value: Any) -> Seen:
    return lambda engine, _: getattr(engine.seen[-1][2].structured_outputs, name) == value


def prompt(text: str) -> Seen:
    return lambda engine, _: engine.seen[-1][1]["prompt"] == text


def num_prompt_tokens(count: int) -> Seen:
    return lambda engine, _: len(engine.seen[-1][1]["prompt_token_ids"]) == count


def answer(check: Callable[[dict[str, Any]], bool]) -> Seen:
    return lambda _, body: check(body)


def choice(check: Callable[[dict[str, Any]], bool]) -> Seen:
    return lambda _, body: check(body["choices"][0])


BOTH: dict[str, tuple[Any, Seen]] = {
    "model": ("alias", answer(lambda body: body["model"] == "fake")),
    "frequency_penalty": (0.5, param("frequency_penalty", 0.5)),
    "presence_penalty": (0.5, param("presence_penalty", 0.5)),
    "repetition_penalty": (1.5, param("repetition_penalty", 1.5)),
    "logit_bias": ({"7": 3}, param("logit_bias", {7: 3.0})),
    "max_tokens": (5, param("max_tokens", 5)),
    "min_tokens": (2, param("min_tokens", 2)),
    "n": (2, answer(lambda body: [c["index"] for c in body["choices"]] == [0, 1])),
    "seed": (7, param("seed", 7)),
    "stop": ("x", param("stop", ["x"])),
    "stop_token_ids": ([7], param("stop_token_ids", [7])),
    "include_stop_str_in_output": (True, param("include_stop_str_in_output", True)),
    "ignore_eos": (True, param("ignore_eos", True)),
    "temperature": (0.5, param("temperature", 0.5)),
    "top_p": (0.5, param("top_p", 0.5)),
    "top_k": (5, param("top_k", 5)),
    "min_p": (0.5, param("min_p", 0.5)),
    "skip_special_tokens": (False, param("skip_special_tokens", False)),
    "spaces_between_special_tokens": (False, param("spaces_between_special_tokens", False)),
    "truncate_prompt_tokens": (4, num_prompt_tokens(4)),
    "allowed_token_ids": ([97, 98], param("allowed_token_ids", [97, 98])),
    "prompt_logprobs": (1, param("prompt_logprobs", 1)),
    "logprob_token_ids": ([5], param("logprob_token_ids", [5])),
    "bad_words": (["no"], param("bad_words", ["no"])),
    "response_format": ({"type": "json_object"}, constraint("json_object", True)),
    "structured_outputs": ({"regex": "a"}, constraint("regex", "a")),
    "guided_json": ({"type": "object"}, constraint("json", {"type": "object"})),
    "guided_regex": ("a", constraint("regex", "a")),
    "guided_choice": (["a"], constraint("choice", ["a"])),
    "guided_grammar": ("start: /a/", constraint("grammar", "start: /a/")),
    "request_id": ("mine", answer(lambda body: body["id"].endswith("-mine"))),
    "return_token_ids": (True, choice(lambda c: len(c["token_ids"]) == 3)),
    "stream_interval": (3, param("stream_interval", 3)),
    "cache_salt": ("salt", lambda engine, _: engine.seen[-1][1]["cache_salt"] == "salt"),
}
OF_COMPLETIONS: dict[str, tuple[Any, Seen]] = {
    "prompt": ([97, 98], num_prompt_tokens(2)),
    "echo": (True, choice(lambda c: c["text"].startswith("hello"))),
    "logprobs": (2, choice(lambda c: len(c["logprobs"]["top_logprobs"][0]) == 3)),
    "add_special_tokens": (False, num_prompt_tokens(5)),
}
OF_CHAT: dict[str, tuple[Any, Seen]] = {
    "messages": ([{"role": "user", "content": "x"}], prompt("user: x\nassistant:")),
    "logprobs": (True, choice(lambda c: len(c["logprobs"]["content"]) == 3)),
    "max_completion_tokens": (2, param("max_tokens", 2)),
    "tools": ([TOOL], lambda engine, _: engine.tokenizer.kwargs["tools"] == [TOOL]),
    "reasoning_effort": ("low", lambda engine, _: engine.tokenizer.kwargs["reasoning_effort"] == "low"),
    "add_generation_prompt": (False, prompt("user: hello")),
    "add_special_tokens": (True, num_prompt_tokens(23)),
    "documents": ([{"text": "a"}], lambda engine, _: engine.tokenizer.kwargs["documents"] == [{"text": "a"}]),
    "chat_template_kwargs": ({"a": 1}, lambda engine, _: engine.tokenizer.kwargs["a"] == 1),
    "return_prompt_text": (True, answer(lambda body: body["prompt_text"] == "user: hello\nassistant:")),
}
TOGETHER: list[tuple[str, dict[str, Any], Seen]] = [
    (COMPLETIONS, {"stream": True, "stream_options": {"include_usage": True}}, lambda *_: True),
    (CHAT, {"stream": True, "stream_options": {"include_usage": True}}, lambda *_: True),
    (CHAT, {"logprobs": True, "top_logprobs": 2},
     choice(lambda c: len(c["logprobs"]["content"][0]["top_logprobs"]) == 2)),
    (CHAT, {"tools": [TOOL], "tool_choice": "none"}, choice(lambda c: "tool_calls" not in c["message"])),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": False}, prompt("user: hello")),
    (CHAT, {"echo": True, "add_generation_prompt": False},
     choice(lambda c: c["message"]["content"].startswith("hello"))),
    (COMPLETIONS, {"truncate_prompt_tokens": 2, "truncation_side": "right"},
     lambda engine, _: engine.seen[-1][1]["prompt_token_ids"] == [1, 104]),
    (COMPLETIONS, {"guided_regex": "a", "guided_decoding_backend": "guidance"}, constraint("backend", "guidance")),
    (COMPLETIONS, {"guided_json": {}, "guided_whitespace_pattern": " "}, constraint("whitespace_pattern", " ")),
    (COMPLETIONS, {"logprobs": 1, "return_tokens_as_token_ids": True},
     choice(lambda c: all(token.startswith("token_id:") for token in c["logprobs"]["tokens"]))),
    (COMPLETIONS, {"priority": 3}, lambda engine, _: engine.priorities[-1] == 3),
]  # fmt: skip
ELSEWHERE = {
    "chat_template", "continue_final_message", "echo", "guided_decoding_backend", "guided_json_object",
    "guided_whitespace_pattern", "include_reasoning", "length_penalty", "parallel_tool_calls", "priority",
    "return_tokens_as_token_ids", "stream", "stream_options", "tool_choice", "top_logprobs", "truncation_side",
    "use_beam_search",
}  # fmt: skip
"""Seen above together with others, or in tests of their own: beams, templates, tools, reasoning."""
LABELS = {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
REFUSED = {
    COMPLETIONS: {"suffix": "x", "best_of": 2, "tools": [TOOL]},
    CHAT: {"mm_processor_kwargs": {"a": 1}, "audio": {}, "functions": [{}], "function_call": "f",
           "modalities": ["audio"]},
}  # fmt: skip
REFUSED_BY_BOTH = {
    "prompt_embeds": "x", "kv_transfer_params": {}, "ec_transfer_params": {}, "vllm_xargs": {"a": 1},
    "repetition_detection": {"a": 1}, "thinking_token_budget": 5, "watermarking": True, "media_io_kwargs": {"a": {}},
}  # fmt: skip
SINGLE = [(path, name, *row) for path, own in ((COMPLETIONS, OF_COMPLETIONS), (CHAT, OF_CHAT))
          for name, row in {**BOTH, **own}.items()]  # fmt: skip


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=200)


@pytest.mark.parametrize(("path", "name", "value", "seen"), SINGLE)
async def test_field(http: httpx.AsyncClient, engine: FakeEngine, path: str, name: str, value: Any, seen: Seen) -> None:
    more = {"tool_choice": "none"} if name == "tools" else {"max_tokens": None} if name.startswith("max_comp") else {}
    response = await http.post(path, json={**BASE[path], **more, name: value})
    assert response.status_code == 200, response.text
    assert seen(engine, response.json())


@pytest.mark.parametrize(("path", "fields", "seen"), TOGETHER)
async def test_fields_together(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any], seen: Seen
) -> None:
    response = await http.post(path, json={**BASE[path], **fields})
    assert response.status_code == 200, response.text
    if fields.get("stream"):
        assert '"usage":{' in response.text and '"choices":[],' in response.text
    else:
        assert seen(engine, response.json())


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [(path, name, value) for path, own in REFUSED.items() for name, value in {**REFUSED_BY_BOTH, **own}.items()],
)
async def test_refused_by_name(http: httpx.AsyncClient, path: str, name: str, value: Any) -> None:
    response = await http.post(path, json={**BASE[path], name: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name and f"`{name}`" in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "cls"), [(COMPLETIONS, CompletionRequest), (CHAT, ChatCompletionRequest)])
async def test_every_field_is_in_a_table(path: str, cls: Any) -> None:
    """So that a new field cannot be accepted without being seen to do something."""
    shown = {name for row_path, name, *_ in SINGLE if row_path == path} | ELSEWHERE | LABELS
    assert cls.model_fields.keys() - shown == set()
    assert cls.unsupported.keys() - {"extra_body", *SAMPLERS} == {*REFUSED_BY_BOTH, "best_of", *REFUSED[path]}
