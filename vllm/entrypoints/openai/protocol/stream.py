"""The chunks of a stream, one server-sent event each.

These are `msgspec` structs and not pydantic models: at many streams at once they are most of what the server's
event loop does. `UNSET` members are left out of the JSON; everything else is written, null included.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType

from vllm.entrypoints.openai.protocol.base import ErrorResponse
from vllm.entrypoints.openai.protocol.logprobs import ChatLogprobs, CompletionLogProbs

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


class Usage(Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class CompletionChunkChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET


class CompletionChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType = UNSET


class FunctionDelta(Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct):
    """id, type and name come once, with the call's beginning; then its arguments in pieces."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(Struct):
    """reasoning_content repeats reasoning under its older name."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_text: str | UnsetType | None = UNSET


def event(chunk: Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + _encoder.encode(chunk) + b"\n\n"


def error_events(error: ErrorResponse) -> bytes:
    """What a stream that fails ends with."""
    return b"data: " + error.model_dump_json().encode() + b"\n\n" + DONE
