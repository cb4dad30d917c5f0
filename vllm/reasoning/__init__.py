"""Reasoning parsers, under vLLM's path: `@ReasoningParserManager.register_module("name")` on a class adds one."""

from vllm.entrypoints.chat_output.parsers import REASONING_PARSERS, Content, OutputParser, Reasoning
from vllm.entrypoints.chat_output.parsers.plugins import ParserManager

ReasoningParserManager = ParserManager("reasoning", REASONING_PARSERS)

__all__ = ["Content", "OutputParser", "Reasoning", "ReasoningParserManager"]
