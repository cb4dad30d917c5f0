"""What a chat output is made of, by the parsers that are configured: message content, reasoning, tool calls."""

from __future__ import annotations

import uuid
from typing import Any

from msgspec import UNSET

from vllm.entrypoints.openai.forced_tools import forces_calls, named_function
from vllm.entrypoints.openai.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    ChainedParser,
    Content,
    NamedCallParser,
    OutputParser,
    PlainParser,
    Reasoning,
    RequiredCallsParser,
    ToolCall,
)
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, ChatMessage, FunctionCall, ToolCallMessage
from vllm.entrypoints.openai.protocol.stream import Delta, FunctionDelta, ToolCallDelta
from vllm.entrypoints.openai.serving_engine import ServingOptions
from vllm.exceptions import VLLMValidationError


def check_parsers(request: ChatCompletionRequest, options: ServingOptions) -> None:
    """Raises VLLMValidationError for what the server was not started to do."""
    if not request.include_reasoning and options.reasoning_parser is None:
        raise VLLMValidationError(
            "`include_reasoning`: false needs a server with --reasoning-parser.", parameter="include_reasoning"
        )
    if not request.wants_tool_calls:
        return
    if forces_calls(request.tool_choice):
        return
    if not options.enable_auto_tool_choice or options.tool_call_parser is None:
        raise VLLMValidationError(
            "`tool_choice` auto needs a server with --enable-auto-tool-choice and --tool-call-parser. Set it to "
            '"none" to have the template show `tools` only.',
            parameter="tool_choice",
        )


def needs_parser(request: ChatCompletionRequest, options: ServingOptions) -> bool:
    return options.reasoning_parser is not None or request.wants_tool_calls


def build_parser(request: ChatCompletionRequest, options: ServingOptions) -> OutputParser:
    """An output of a given form has it from its first token on: there is no reasoning to be set apart."""
    if request.wants_tool_calls and forces_calls(request.tool_choice):
        name = named_function(request.tool_choice)
        return RequiredCallsParser() if name is None else NamedCallParser(name)
    reasoning = options.reasoning_parser if request.constraint() is None else None
    tools = _tool_parser(options.tool_call_parser, request.tools or []) if request.wants_tool_calls else None
    if reasoning is None:
        return tools or PlainParser()
    parser = REASONING_PARSERS[reasoning]()
    return parser if tools is None else ChainedParser(parser, tools)


def _tool_parser(name: str | None, tools: list[dict[str, Any]]) -> OutputParser | None:
    if name is None:
        return None
    parser = TOOL_PARSERS[name]()
    if (set_tools := getattr(parser, "set_tools", None)) is not None:
        set_tools(tools)
    return parser


class ChatOutput:
    """One output on its way through the parsers."""

    def __init__(self, request: ChatCompletionRequest, options: ServingOptions) -> None:
        self._parser = build_parser(request, options)
        self._is_named = named_function(request.tool_choice) is not None
        self._gives_reasoning = request.include_reasoning
        self._max_calls = 1 if request.parallel_tool_calls is False else None
        self.num_calls = 0

    def message(self, role: str, text: str, echo: str) -> ChatMessage:
        """The whole output as a message."""
        delta = self.delta(text, finished=True)
        content = echo + (delta.content or "")
        reasoning = delta.reasoning or None
        calls = [
            ToolCallMessage(
                id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments)
            )
            for call in delta.tool_calls or ()
        ]
        return ChatMessage(
            role=role,
            content=content if content or not (calls or reasoning) else None,
            reasoning=reasoning,
            reasoning_content=reasoning,
            tool_calls=calls or None,
        )

    def delta(self, text: str, finished: bool) -> Delta:
        """What this piece of the output adds."""
        parts = self._parser.feed(text) + (self._parser.finish() if finished else [])
        content = "".join(part.text for part in parts if isinstance(part, Content))
        reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
        calls = [self._call(part) for part in parts if isinstance(part, ToolCall) and self._takes_call()]
        shown = reasoning if reasoning and self._gives_reasoning else UNSET
        return Delta(content=content or UNSET, reasoning=shown, reasoning_content=shown, tool_calls=calls or UNSET)

    def finish_reason(self, reason: str | None) -> str | None:
        """A function that was named is called anyway, and does not change the reason."""
        return "tool_calls" if self.num_calls and reason == "stop" and not self._is_named else reason

    def _takes_call(self) -> bool:
        return self._max_calls is None or self.num_calls < self._max_calls

    def _call(self, part: ToolCall) -> ToolCallDelta:
        index, self.num_calls = self.num_calls, self.num_calls + 1
        return ToolCallDelta(index, f"chatcmpl-tool-{uuid.uuid4().hex}", FunctionDelta(part.name, part.arguments))


def is_empty(delta: Delta) -> bool:
    return delta.content is UNSET and delta.reasoning is UNSET and delta.tool_calls is UNSET
