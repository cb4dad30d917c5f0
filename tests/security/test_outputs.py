"""What a model writes is as little to be trusted as what a client sends: it may be anything, and is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import BASE, make_app
from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.openai.parsers import REASONING_PARSERS, TOOL_PARSERS

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "a": {"type": "array"}, "b": {"type": "string"}}}}}]  # fmt: skip
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "tools": TOOLS}
HOSTILE = ["[f(a=" * 4000, "<tool_call>" * 2000, '{"name": "f", "arguments": ' * 2000, "[" * 20_000, "<think>" * 3000]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1000)


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
