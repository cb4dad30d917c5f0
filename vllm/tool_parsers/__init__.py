"""Tool parsers, under vLLM's path: `@ToolParserManager.register_module("name")` on a class adds one."""

from vllm.entrypoints.chat_output.parsers import TOOL_PARSERS, CallArguments, CallStart, Content, OutputParser, ToolCall
from vllm.entrypoints.chat_output.parsers.plugins import ParserManager

ToolParserManager = ParserManager("tool", TOOL_PARSERS)

__all__ = ["CallArguments", "CallStart", "Content", "OutputParser", "ToolCall", "ToolParserManager"]
