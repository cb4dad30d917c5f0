"""Parsers of what models write: reasoning, tool calls. Registries by the names of vLLM's options."""

from __future__ import annotations

from collections.abc import Callable

from vllm.entrypoints.chat_output.parsers.base import (
    CallArguments,
    CallStart,
    Content,
    OutputParser,
    Part,
    PlainParser,
    Reasoning,
    ToolCall,
)
from vllm.entrypoints.chat_output.parsers.more_tools import (
    Llama4PythonicParser,
    NamedCallParser,
    PythonicParser,
    Qwen3CoderParser,
    RequiredCallsParser,
)
from vllm.entrypoints.chat_output.parsers.reasoning import ReasoningParser, deepseek_r1, granite, qwen3
from vllm.entrypoints.chat_output.parsers.tools import GraniteParser, HermesParser, Llama3JsonParser, MistralParser

REASONING_PARSERS: dict[str, Callable[[], ReasoningParser]] = {
    "deepseek_r1": deepseek_r1,
    "granite": granite,
    "qwen3": qwen3,
}
TOOL_PARSERS: dict[str, Callable[[], OutputParser]] = {
    "granite": GraniteParser,
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "llama4_pythonic": Llama4PythonicParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen3_coder": Qwen3CoderParser,
}


class ChainedParser:
    """Reasoning is set apart first; tools are looked for in the content that is left."""

    def __init__(self, reasoning: OutputParser, tools: OutputParser) -> None:
        self._reasoning, self._tools = reasoning, tools

    def feed(self, text: str) -> list[Part]:
        return self._pass_on(self._reasoning.feed(text))

    def finish(self) -> list[Part]:
        return self._pass_on(self._reasoning.finish()) + self._tools.finish()

    def _pass_on(self, parts: list[Part]) -> list[Part]:
        passed: list[Part] = []
        for part in parts:
            passed += self._tools.feed(part.text) if isinstance(part, Content) else [part]
        return passed


__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "CallArguments",
    "CallStart",
    "ChainedParser",
    "Content",
    "NamedCallParser",
    "OutputParser",
    "Part",
    "PlainParser",
    "Reasoning",
    "RequiredCallsParser",
    "ToolCall",
]
