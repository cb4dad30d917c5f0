"""What a model writes is as little to be trusted as what a client sends: it may be anything, and is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import BASE, make_app
from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.chat_output.parsers import REASONING_PARSERS, TOOL_PARSERS

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "a": {"type": "array"}, "b": {"type": "string"}}}}}]  # fmt: skip
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "tools": TOOLS}
HOSTILE = ["[f(a=" * 4000, "<tool_call>" * 2000, '{"name": "f", "arguments": ' * 2000, "[" * 20_000, "<think>" * 3000]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1000)


FUNCTION: dict[str, Any] = TOOLS[0]["function"]  # type: ignore[assignment]
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {**ASKED, "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}),
]
ODD_VALUES = [
    "1e999",
    "-1e999",
    "9" * 5000,
    "NaN",
    "-Infinity",
    "inf",
    '"\\ud800"',
    "[" * 2000 + "]" * 2000,
    '{"": 1e400}',
]


def calls_with(value: str) -> list[str]:
    return [
        f"[f(a=[{value}], b={value})]",
        f'<tool_call>{{"name": "f", "arguments": {{"a": [{value}]}}}}</tool_call>',
        f'<tool_call>{{"arguments": {{"a": [{value}]}}, "name": "f\\ud800"}}</tool_call>',
        f'<tool_call>{{"name": "f", "arguments": {json.dumps(f"{{{json.dumps(value)}: {value}}}")}}}</tool_call>',
        f"<tool_call><function=f><parameter=a>[{value}]</parameter><parameter=b>{value}</parameter></function></tool_call>",
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {{"a": {value}}}}}]',
        f'<|tool_call|>[{{"name": "f", "arguments": {{"a": {value}}}}}]',
        f'{{"name": "f", "parameters": {{"a": {value}}}}}',
    ]


def strict_json(text: str | bytes) -> Any:
    """Raises ValueError for NaN and infinity, which are not JSON."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse, parse_int=str)


async def statuses(engine: FakeEngine, texts: list[str], *words: str) -> set[int]:
    """Of a chat for each text that the model writes."""
    transport = httpx.ASGITransport(await make_app(engine, "--enable-auto-tool-choice", *words))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        found = set()
        for text in texts:
            engine.text = text
            found.add((await http.post("/v1/chat/completions", json=ASKED)).status_code)
        return found


class TestParsersOfCalls:
    @pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
    async def test_nothing_is_run(self, engine: FakeEngine, tmp_path: Path, name: str) -> None:
        mark = tmp_path / "mark"
        run = f"__import__('os').mkdir('{mark}')"
        texts = [
            f"[f(a={run})]",
            f"[{run}]",
            f'<tool_call>{{"name": "f", "arguments": {{"a": {run}}}}}</tool_call>',
            f"<tool_call><function=f><parameter=a>{run}</parameter></function></tool_call>",
            f'[TOOL_CALLS] [{{"name": "f", "arguments": {run}}}]',
            f'{{"name": "f", "parameters": {{"a": "{{{{ {run} }}}}"}}}}',
        ]
        assert await statuses(engine, texts, "--tool-call-parser", name) == {200}
        assert not mark.exists()

    @pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
    async def test_hostile_texts_come_back(self, engine: FakeEngine, name: str) -> None:
        """A parser that backtracks would not come back from these."""
        reasoning = sorted(REASONING_PARSERS)[len(name) % len(REASONING_PARSERS)]
        words = ("--tool-call-parser", name, "--reasoning-parser", reasoning)
        assert await statuses(engine, HOSTILE, *words) == {200}

    @pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
    async def test_odd_numbers_and_texts_are_answered_as_json(self, engine: FakeEngine, name: str) -> None:
        """By every route, and such calls may be sent back. What forms of JSON take for broken off is not JSON."""
        num_calls = 0
        is_json = name not in ("pythonic", "llama4_pythonic", "qwen3_coder")
        transport = httpx.ASGITransport(await make_app(engine, "--enable-auto-tool-choice", "--tool-call-parser", name))
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            for text in (text for value in ODD_VALUES for text in calls_with(value)):
                engine.text = text
                answer = await http.post("/v1/chat/completions", json=ASKED)
                assert answer.status_code == 200, text
                message = strict_json(answer.content)["choices"][0]["message"]
                for call in message.get("tool_calls") or ():
                    num_calls += 1
                    if is_json and any(odd in text for odd in ("NaN", "Infinity", "inf", "[[[")):
                        continue
                    strict_json(call["function"]["arguments"])
                    again = {**ASKED, "messages": [*ASKED["messages"], message, {"role": "tool", "content": "1"}]}
                    assert (await http.post("/v1/chat/completions", json=again)).status_code == 200
                for path, asked in ROUTES:
                    answer = await http.post(path, json=asked)
                    assert answer.status_code == 200, (path, text)
                    strict_json(answer.content)
        assert num_calls >= 5
