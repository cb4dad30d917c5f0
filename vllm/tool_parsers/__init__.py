"""Tool parsers, under vLLM's path: `@ToolParserManager.register_module("name")` on a class adds one."""

from vllm.entrypoints.openai.parsers import TOOL_PARSERS, CallArguments, CallStart, Content, OutputParser, ToolCall
from vllm.entrypoints.openai.parsers.plugins import ParserManager

ToolParserManager = ParserManager("tool", TOOL_PARSERS)

__all__ = ["CallArguments", "CallStart", "Content", "OutputParser", "ToolCall", "ToolParserManager"]
