"""Parsers from outside: registered by name, from a file, used by a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.chat_output.parsers.plugins import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

PLUGIN = """
from vllm.tool_parsers import Content, ToolCall, ToolParserManager


@ToolParserManager.register_module("shout")
class Shout:
    def feed(self, text):
        return [Content(text.upper())]

    def finish(self):
        return [ToolCall("f", "{}")]
"""


@pytest.mark.parametrize("flag", ["--tool-parser-plugin", "--reasoning-parser-plugin"])
async def test_plugin_file(engine: FakeEngine, make_client: Callable[..., Any], tmp_path: Path, flag: str) -> None:
    (tmp_path / "shout.py").write_text(PLUGIN)
    engine.text = "hello"
    flags = ("--enable-auto-tool-choice", flag, str(tmp_path / "shout.py"))
    try:
        client = await make_client(*flags, "--tool-call-parser", "shout")
        tools = [{"type": "function", "function": {"name": "f"}}]
        body = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
        message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    finally:
        ToolParserManager._parsers.pop("shout", None)
    assert message["content"] == "HELLO"
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{}]


def test_registry() -> None:
    parsers: dict[str, Any] = {}
    manager = ParserManager("tool", parsers)
    manager.register_module(["a", "b"], module=dict)
    assert manager.list_registered() == ["a", "b"] and manager.get_tool_parser("b") is dict
    with pytest.raises(KeyError, match="already"):
        manager.register_module("a", force=False, module=list)
    with pytest.raises(KeyError, match="deepseek_r1"):
        ReasoningParserManager.get_reasoning_parser("deepseek-r1")


def test_file_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    for name in ("bad.py", "absent.py", "text.txt"):
        with pytest.raises(ValueError, match=r"cannot be run|no Python file"):
            ToolParserManager.import_tool_parser(str(tmp_path / name))
