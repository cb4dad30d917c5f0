"""Random requests: valid ones, nearly valid ones, hostile ones; some clients leave. By seed, so a find can be
repeated.

`python -m tests.security.fuzzer URL [SECONDS] [SEED]` fuzzes a running server, and ends with status 1 at the first
answer that is neither a success nor the client's fault.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import httpx

from vllm.sample.table import ROWS, values_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
PATHS = (COMPLETIONS, COMPLETIONS, CHAT, CHAT, RESPONSES, RESPONSES, MESSAGES, COUNT, TOKENIZE, DETOKENIZE)

TEXTS = ["", "a", "hello world", "\u2603\U0001f600", "\ud800", "\x00", "a\nb", "<|im_end|>", "{{ 7 * 7 }}", "{% for"]
NUMBERS = [0, 1, -1, 2, 7, 255, 256, 319, 320, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.5, 1e308, 1e-308]
HOSTILE: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"a": None}, "1", "NaN", [1, "a"], ["a"] * 2000, list(range(2000)),
    "x" * 20_000, {str(i): i for i in range(2000)}, [[[[[[[]]]]]]], {"$ref": "#"}, {"__proto__": {}}, *NUMBERS, *TEXTS,
]  # fmt: skip

VALID: dict[str, list[Any]] = {
    "model": ["test-model", None, ""],
    "max_tokens": [1, 5, 20, None],
    **{row.name: values_of(row) for row in ROWS.values() if row.is_field},
    **{name: values_of(ROWS[name]) for name in ("n", "prompt_logprobs", "truncate_prompt_tokens")},
    "truncation_side": ["left", "right"],
    "stream": [True, False, None],
    "stream_options": [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    "return_token_ids": [True],
    "return_tokens_as_token_ids": [True],
    "cache_salt": ["salt", "x"],
    "request_id": ["mine", "a-b.c"],
    "priority": [0],
    "user": ["me"],
    "echo": [True, False],
    "logit_biass": [{}],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "some_label": ["x"],
    "max_new_tokens": [3],
    "n_predict": [-1, 4],
    "stop_sequences": [["e"], "x"],
    "grammar": ["root ::= [a-z]+", ""],
    "regex": ["[ab]{3}"],
    "json_schema": [{"type": "object", "propertyNames": {"enum": ["a", "b"]}, "maxProperties": 2}],
    "format": ["json", {"type": "object", "patternProperties": {"^(a|b)$": {}}, "unevaluatedProperties": False}],
    "repeat_penalty": [1, 1.5],
    "store": [True],
}
OF_COMPLETIONS: dict[str, list[Any]] = {
    "prompt": ["The quick", "", [3, 4], [[3], [4, 5]], ["a", "b"], "x " * 200, [320], [-1], [[]]],
    "logprobs": [0, 3, 20, None],
    "add_special_tokens": [True, False],
    "suffix": [None, "end"],
}
OF_CHAT: dict[str, list[Any]] = {
    "messages": [
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Well"}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
        [{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}, {"role": "system", "content": "c"}],
        [{"role": "user"}],
        [],
    ],
    "logprobs": [True, False],
    "top_logprobs": [0, 3],
    "add_generation_prompt": [True, False],
    "continue_final_message": [True, False],
    "chat_template_kwargs": [{"a": 1}, {"messages": []}, {"self": 1}, {}],
    "chat_template": ["{{ messages }}"],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}], [{"type": "custom", "custom": {"name": "g"}}]],
    "tool_choice": [
        "none",
        "auto",
        "required",
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
        },
    ],
    "thinking": [{"type": "disabled"}],
    "reasoning_effort": ["low"],
    "max_completion_tokens": [1, 9],
}


PARTS: list[Any] = [
    "a",
    [{"type": "input_text", "text": "a"}],
    [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}],
    [{"type": "image", "source": {}}],
    [{"type": "tool_use", "id": "t", "name": "f", "input": {}}, {"type": "thinking", "thinking": "Hm."}],
    [{"type": "tool_result", "tool_use_id": "t", "content": "a"}],
    [{"type": "document", "source": {"type": "text", "data": "a"}}, {"type": "redacted_thinking", "data": "x"}],
    [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "f"}]}],
    [{"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "a"}]}],
    [],
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}}
OF_RESPONSES: dict[str, list[Any]] = {
    "input": [
        "hello",
        *([{"role": role, "content": part}] for role in ("user", "assistant") for part in PARTS),
        [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
        [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}],
        [{"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "c", "output": PARTS[1]}],
        [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}]}],
        [{"type": "item_reference", "id": "x"}],
        [
            {"role": "user", "content": "a"},
            {"type": "web_search_call", "id": "w"},
            {"role": "developer", "content": "b"},
        ],
        [{"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "a"}],
    ],
    "instructions": ["Be brief.", ""],
    "max_output_tokens": [1, 9, None],
    "previous_response_id": ["resp_x", None],
    "store": [True, False],
    "background": [False, True],
    "text": [{"format": {"type": "json_object"}}, {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}],
    "tools": [
        [{"type": "function", "name": "f", "parameters": SCHEMA}, {"type": "web_search"}],
        [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}, {"type": "x"}]}],
        [],
    ],
    "tool_choice": [
        "auto",
        "none",
        "required",
        {"type": "function", "name": "f"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "namespace": "n", "name": "g"}]},
    ],
    "truncation": ["auto", "disabled"],
    "parallel_tool_calls": [True, False],
    "reasoning": [{"effort": "low"}, {"summary": "auto"}],
    "include": [["message.output_text.logprobs"], ["reasoning.encrypted_content"], []],
    "top_logprobs": [0, 3],
    "structured_outputs": [{"regex": "[ab]{3}"}, {"choice": ["a"]}],
}
OF_MESSAGES: dict[str, list[Any]] = {
    "messages": [
        [{"role": "user", "content": "hello"}],
        *([{"role": role, "content": part}] for role in ("user", "assistant") for part in PARTS),
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    ],
    "context_management": [{"edits": []}],
    "output_format": [{"type": "json_schema", "schema": SCHEMA}],
    "system": ["Be brief.", [{"type": "text", "text": "a"}]],
    "stop_sequences": [["e"], ["a", "b"], []],
    "tools": [[{"name": "f", "input_schema": SCHEMA}], [{"type": "bash_20250124", "name": "bash"}], []],
    "tool_choice": [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "f"}, {"type": "none"}],
    "thinking": [{"type": "disabled"}, {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}],
    "output_config": [{"format": {"type": "json_schema", "schema": SCHEMA}}, {"effort": "low"}],
}
FIELDS: dict[str, dict[str, list[Any]]] = {
    COMPLETIONS: {**VALID, **OF_COMPLETIONS},
    CHAT: {**VALID, **OF_CHAT},
    RESPONSES: {**VALID, **OF_RESPONSES},
    MESSAGES: {**VALID, **OF_MESSAGES},
    COUNT: OF_MESSAGES,
    TOKENIZE: {**OF_CHAT, **OF_COMPLETIONS, "return_token_strs": [True]},
    DETOKENIZE: {**OF_COMPLETIONS, "tokens": [[1, 2], [], [400], ["a"]]},
}
NEEDED = {COMPLETIONS: "prompt", CHAT: "messages", RESPONSES: "input", MESSAGES: "messages", COUNT: "messages",
          DETOKENIZE: "tokens"}  # fmt: skip


def random_request(dice: random.Random) -> tuple[str, Any]:
    """A path and a body."""
    path = dice.choice(PATHS)
    if dice.random() < 0.05:
        return path, dice.choice(HOSTILE)
    fields = FIELDS[path]
    needed = NEEDED.get(path, dice.choice(["prompt", "messages"]))
    body = {needed: fields[needed][0] if dice.random() < 0.7 else dice.choice(fields[needed])}
    for name in dice.sample(sorted(fields), dice.randint(0, min(6, len(fields)))):
        body[name] = dice.choice(fields[name])
    body.setdefault("max_output_tokens" if path == RESPONSES else "max_tokens", dice.choice([1, 4, 8]))
    for _ in range(dice.choice([0, 0, 1, 2])):
        body[dice.choice(sorted(fields))] = dice.choice(HOSTILE)
    return path, body


def is_fine(status: int) -> bool:
    """A success, or the client's fault."""
    return 200 <= status < 500


def stream_failed(text: str) -> bool:
    """Whether a stream ended with an error of the server's own, in whichever API's shape."""
    return any(sign in text for sign in ('"code":5', '"code":"InternalServerError"', '"type":"api_error"'))


class Fuzzer:
    """counts: answers by status. faults: requests whose answers are not fine, with the answers."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.counts: Counter[int] = Counter()
        self.faults: list[str] = []
        self._client = client
        self._dice = random.Random(seed)

    async def run(self, num_requests: int, num_at_once: int = 16) -> None:
        slots = asyncio.Semaphore(num_at_once)

        async def one(path: str, body: Any, leave_after: float | None) -> None:
            async with slots:
                await self._send(path, body, leave_after)

        requests = [(*random_request(self._dice), self._patience()) for _ in range(num_requests)]
        await asyncio.gather(*(one(*request) for request in requests))

    def _patience(self) -> float | None:
        return self._dice.uniform(0, 0.05) if self._dice.random() < 0.15 else None

    async def _send(self, path: str, body: Any, leave_after: float | None) -> None:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            answer = await asyncio.wait_for(self._client.post(path, content=content, headers=headers), leave_after)
        except asyncio.TimeoutError:
            self.counts[0] += 1
            return
        self.counts[answer.status_code] += 1
        if not is_fine(answer.status_code) or (answer.status_code == 200 and stream_failed(answer.text)):
            self.faults.append(f"{path} {content[:2000]!r} -> {answer.status_code} {answer.text[:500]}")


async def main(url: str, seconds: float = 60, seed: int = 0) -> int:
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while time.monotonic() < deadline:
            fuzzer = Fuzzer(client, seed)
            await fuzzer.run(500)
            print(f"seed {seed}: {dict(sorted(fuzzer.counts.items()))}", flush=True)
            if fuzzer.faults:
                print("\n".join(fuzzer.faults))
                return 1
            seed += 1
    return 0


if __name__ == "__main__":
    address, *numbers = sys.argv[1:]
    sys.exit(asyncio.run(main(address, *map(float, numbers[:1]), *map(int, numbers[1:2]))))
