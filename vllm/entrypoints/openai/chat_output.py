"""What a chat output is made of, by the parsers that are configured: message content, reasoning, tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import UNSET

from vllm.entrypoints.chat_output.forced_tools import forces_calls, named_function
from vllm.entrypoints.chat_output.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    CallArguments,
    CallStart,
    ChainedParser,
    Content,
    NamedCallParser,
    OutputParser,
    Part,
    PlainParser,
    Reasoning,
    RequiredCallsParser,
    ToolCall,
)
from vllm.entrypoints.chat_output.parsers.reasoning import Preceding
from vllm.entrypoints.chat_output.reasoning import ReasoningMarkers
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, ChatMessage, FunctionCall, ToolCallMessage
from vllm.entrypoints.openai.protocol.stream import Delta, FunctionDelta, ToolCallDelta
from vllm.entrypoints.openai.serving_engine import ServingOptions
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput


def check_parsers(request: ChatCompletionRequest, options: ServingOptions) -> None:
    """Raises VLLMValidationError for what the server was not started to do."""
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


def reasons(request: ChatCompletionRequest, options: ServingOptions, markers: ReasoningMarkers) -> bool:
    """Whether reasoning is looked for: an output of a given form thinks first only where the engine can tell."""
    return options.reasoning_parser is not None and (markers.are_tokens or request.constraint() is None)


def build_parser(
    request: ChatCompletionRequest, options: ServingOptions, markers: ReasoningMarkers, preceding: Preceding
) -> OutputParser:
    tools = _calls_parser(request, options) if request.wants_tool_calls else None
    if options.reasoning_parser is None or not reasons(request, options, markers):
        return tools or PlainParser()
    parser = REASONING_PARSERS[options.reasoning_parser]()
    parser.follow(preceding)
    return parser if tools is None else ChainedParser(parser, tools)


def _calls_parser(request: ChatCompletionRequest, options: ServingOptions) -> OutputParser | None:
    if not forces_calls(request.tool_choice):
        return _tool_parser(options.tool_call_parser, request.tools or [])
    name = named_function(request.tool_choice)
    return RequiredCallsParser() if name is None else NamedCallParser(name)


def _tool_parser(name: str | None, tools: list[dict[str, Any]]) -> OutputParser | None:
    if name is None:
        return None
    parser = TOOL_PARSERS[name]()
    if (set_tools := getattr(parser, "set_tools", None)) is not None:
        set_tools(tools)
    return parser


def tool_marks(name: str | None) -> tuple[str, ...]:
    """What a tool parser knows calls by, if they are marked."""
    parser: Any = None if name is None else TOOL_PARSERS[name]
    close = getattr(parser, "close", None)
    return (*getattr(parser, "marks", ()), *((close,) if close else ()))


class ChatOutput:
    """One output on its way through the parsers. num_reasoning_tokens: None where none are looked for."""

    def __init__(
        self, request: ChatCompletionRequest, options: ServingOptions, markers: ReasoningMarkers, preceding: Preceding
    ) -> None:
        self._parser = build_parser(request, options, markers, preceding)
        self._counter = markers.counter(preceding) if reasons(request, options, markers) else None
        self._is_named = named_function(request.tool_choice) is not None
        self._gives_reasoning = request.include_reasoning
        self._calls = CallFilter(request)

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    @property
    def num_reasoning_tokens(self) -> int | None:
        return None if self._counter is None else self._counter.num_tokens

    def message(self, role: str, completion: CompletionOutput, echo: str) -> ChatMessage:
        """The whole output as a message."""
        delta = self.delta(completion.text, completion.token_ids, finished=True)
        content = echo + (delta.content or "")
        reasoning = delta.reasoning or None
        calls = [_whole(call) for call in delta.tool_calls or ()]
        return ChatMessage(
            role=role,
            content=content if content or not (calls or reasoning) else None,
            reasoning=reasoning,
            reasoning_content=reasoning,
            tool_calls=calls or None,
        )

    def delta(self, text: str, token_ids: Iterable[int], finished: bool) -> Delta:
        """What this piece of the output adds."""
        parts = self._calls.taken(self._parser.feed(text) + (self._parser.finish() if finished else []))
        content = "".join(part.text for part in parts if isinstance(part, Content))
        reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
        if self._counter is not None:
            self._counter.feed(token_ids, reasoning)
        calls = _call_deltas(parts, self.num_calls)
        shown = reasoning if reasoning and self._gives_reasoning else UNSET
        return Delta(content=content or UNSET, reasoning=shown, reasoning_content=shown, tool_calls=calls or UNSET)

    def finish_reason(self, reason: str | None) -> str | None:
        """A function that was named is called anyway, and does not change the reason."""
        return "tool_calls" if self.num_calls and reason == "stop" and not self._is_named else reason


class CallFilter:
    """Calls of one output: counted, and left out beyond the first where the request wants no more. Whole calls come out
    as a beginning and arguments."""

    def __init__(self, request: ChatCompletionRequest) -> None:
        self._max_calls = 1 if request.parallel_tool_calls is False else None
        self._drops = False
        self.num_calls = 0

    def taken(self, parts: list[Part]) -> list[Part]:
        taken: list[Part] = []
        for part in parts:
            if isinstance(part, (CallStart, ToolCall)):
                self._drops = self.num_calls == self._max_calls
                self.num_calls += not self._drops
            if self._drops and isinstance(part, (CallStart, CallArguments, ToolCall)):
                continue
            taken += [CallStart(part.name), CallArguments(part.arguments)] if isinstance(part, ToolCall) else [part]
        return taken


def _call_deltas(parts: list[Part], num_calls: int) -> list[ToolCallDelta]:
    """One for each call that begins or grows in these parts. num_calls: of the output, these counted."""
    index = num_calls - sum(isinstance(part, CallStart) for part in parts) - 1
    deltas: list[ToolCallDelta] = []
    for part in parts:
        if isinstance(part, CallStart):
            index += 1
            call_id = f"chatcmpl-tool-{uuid.uuid4().hex}"
            deltas.append(ToolCallDelta(index, FunctionDelta("", part.name), call_id, "function"))
        elif isinstance(part, CallArguments):
            if not deltas or deltas[-1].index != index:
                deltas.append(ToolCallDelta(index, FunctionDelta("")))
            deltas[-1].function.arguments += part.text
    return deltas


def _whole(call: ToolCallDelta) -> ToolCallMessage:
    function = FunctionCall(name=str(call.function.name), arguments=call.function.arguments)
    return ToolCallMessage(id=str(call.id), function=function)


def is_empty(delta: Delta) -> bool:
    return delta.content is UNSET and delta.reasoning is UNSET and delta.tool_calls is UNSET


def num_reasoning_tokens(outputs: Sequence[ChatOutput]) -> int | None:
    """Of all outputs together; None where reasoning is not looked for."""
    counts = [count for output in outputs if (count := output.num_reasoning_tokens) is not None]
    return sum(counts) if counts else None
