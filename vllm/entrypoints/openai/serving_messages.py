"""`/v1/messages` and `/v1/messages/count_tokens`: chats in the form of Anthropic's API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from vllm.entrypoints.openai.blocks import Change, Closed, Opened
from vllm.entrypoints.openai.message_blocks import chat_messages, delta_of, opened_block, whole_block
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, ErrorResponse
from vllm.entrypoints.openai.protocol.messages import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
    MessagesResponse,
    MessageUsage,
    StopReason,
    messages_error,
)
from vllm.entrypoints.openai.response_events import named_event
from vllm.entrypoints.openai.serving_chat import OpenAIServingChat
from vllm.entrypoints.openai.serving_engine import Generation
from vllm.entrypoints.openai.sse import Events
from vllm.outputs import RequestOutput


class ServingMessages:
    def __init__(self, chat: OpenAIServingChat) -> None:
        self._chat = chat

    async def create_message(self, request: MessagesRequest) -> MessagesResponse | Events | ErrorResponse:
        return await self._chat.answer(self._create(request))

    async def count_tokens(self, request: CountTokensRequest) -> CountTokensResponse | ErrorResponse:
        return await self._chat.answer(self._count(request))

    async def _create(self, request: MessagesRequest) -> MessagesResponse | Events:
        chat_request = _chat(request)
        generation = await self._chat.begin(chat_request, f"msg_{uuid.uuid4().hex}")
        work = _Work(self._chat, chat_request, generation)
        if request.stream:
            return await self._chat.stream(work.events(), _failure)
        return await work.run()

    async def _count(self, request: CountTokensRequest) -> CountTokensResponse:
        return CountTokensResponse(input_tokens=await self._chat.count_tokens(_chat(request)))


def _chat(request: MessagesRequest | CountTokensRequest) -> ChatCompletionRequest:
    """A conversation that ends with the assistant's turn is gone on with."""
    messages = chat_messages(request.messages, request.system)
    continued = messages[-1]["role"] == "assistant"
    return request.to_chat(messages, continue_final_message=continued, add_generation_prompt=not continued)


def _failure(error: ErrorResponse) -> bytes:
    """What a stream that fails ends with."""
    return named_event("error", messages_error(error))


class _Work:
    """One message in the making."""

    def __init__(self, chat: OpenAIServingChat, request: ChatCompletionRequest, generation: Generation) -> None:
        self._chat = chat
        self._generation = generation
        self._blocks = chat.blocks(request, generation)
        self._num_output = 0
        self._num_cached = 0
        self._finish_reason: str | None = None
        self._stop_text: str | None = None

    async def run(self) -> MessagesResponse:
        (output,) = await self._chat.collect(self._generation)
        for _ in self._take(output):
            pass
        self._chat.request_logger.log_output(self._generation.id, 0, output.outputs[0].text, self._finish_reason)
        return self._message(
            content=[whole_block(block) for block in self._blocks.row],
            stop_reason=self._stop_reason,
            stop_sequence=self._stop_text,
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        begun = False
        async with aclosing(self._generation.outputs) as outputs:
            async for _, output in outputs:
                changes = self._take(output)
                if not begun:
                    begun = True
                    yield _event("message_start", message=self._message().model_dump())
                for change in changes:
                    yield _of_change(change)
        ended = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_text}
        yield _event("message_delta", delta=ended, usage=self._usage().model_dump())
        yield _event("message_stop")

    def _take(self, output: RequestOutput) -> Iterator[Change]:
        (completion,) = output.outputs
        self._num_cached = output.num_cached_tokens or self._num_cached
        self._num_output += len(completion.token_ids)
        self._finish_reason = completion.finish_reason
        if isinstance(completion.stop_reason, str):
            self._stop_text = completion.stop_reason
        return self._blocks.feed(completion)

    @property
    def _stop_reason(self) -> StopReason:
        if self._finish_reason == "length":
            return "max_tokens"
        if self._blocks.num_calls:
            return "tool_use"
        return "end_turn" if self._stop_text is None else "stop_sequence"

    def _message(self, **fields: Any) -> MessagesResponse:
        return MessagesResponse(id=self._generation.id, model=self._generation.model, usage=self._usage(), **fields)

    def _usage(self) -> MessageUsage:
        num_prompt = len(self._generation.prompts[0].token_ids)
        return MessageUsage(
            input_tokens=num_prompt - self._num_cached,
            output_tokens=self._num_output,
            cache_read_input_tokens=self._num_cached,
        )


def _of_change(change: Change) -> bytes:
    index = change.block.index
    if isinstance(change, Opened):
        return _event("content_block_start", index=index, content_block=opened_block(change.block))
    if isinstance(change, Closed):
        return _event("content_block_stop", index=index)
    return _event("content_block_delta", index=index, delta=delta_of(change.block, change.piece))


def _event(type: str, **fields: Any) -> bytes:
    return named_event(type, {"type": type, **fields})
