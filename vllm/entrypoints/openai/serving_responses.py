"""`/v1/responses`: a chat whose output is a row of items, which can be stored and gone on with.

A response is stored when it has ended, with its conversation; one in the background is stored from its beginning, with
the status that it has. Ids are random and the server's own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from vllm import envs
from vllm.entrypoints.chat_utils import text_field
from vllm.entrypoints.fields import refusal
from vllm.entrypoints.openai.blocks import Block, Change
from vllm.entrypoints.openai.errors import error_from
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, ErrorResponse, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.protocol.responses import (
    CountedInput,
    DeletedResponse,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseUsage,
)
from vllm.entrypoints.openai.response_events import Namespaces, ResponseEvents, item_of, item_status
from vllm.entrypoints.openai.response_items import chat_messages
from vllm.entrypoints.openai.response_store import IN_MEMORY, ResponseStore, StoredResponse
from vllm.entrypoints.openai.serving_chat import OpenAIServingChat, chat_logprobs
from vllm.entrypoints.openai.serving_engine import Generation
from vllm.entrypoints.openai.sse import Events
from vllm.entrypoints.server.in_flight import InFlight, ServerShutdown
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.outputs import RequestOutput

_HEED_SECONDS = 0.05
"""How often fronts look for what was asked of one another."""


class OpenAIServingResponses:
    """in_flight: where responses in the background are counted, so that the server waits for them. store_path: of the
    file that several fronts keep responses in.
    """

    def __init__(self, chat: OpenAIServingChat, in_flight: InFlight, store_path: str = IN_MEMORY) -> None:
        self._chat = chat
        self._in_flight = in_flight
        self._store: ResponseStore | None = None
        if envs.VLLM_ENABLE_RESPONSES_API_STORE:
            max_records, max_bytes = envs.VLLM_RESPONSES_API_STORE_SIZE, envs.VLLM_RESPONSES_API_STORE_MB << 20
            self._store = ResponseStore(max_records, max_bytes, store_path)
        self._heeding: asyncio.Task[None] | None = None
        self._background: dict[str, asyncio.Task[None]] = {}

    async def create_response(self, request: ResponsesRequest) -> ResponsesResponse | Events | ErrorResponse:
        return await self._chat.answer(self._create(request))

    async def count_input_tokens(self, request: ResponsesRequest) -> CountedInput | ErrorResponse:
        return await self._chat.answer(self._count(request))

    async def retrieve_response(self, response_id: str) -> ResponsesResponse | ErrorResponse:
        return await self._chat.answer(self._retrieve(response_id))

    async def cancel_response(self, response_id: str) -> ResponsesResponse | ErrorResponse:
        return await self._chat.answer(self._cancel(response_id))

    async def delete_response(self, response_id: str) -> DeletedResponse | ErrorResponse:
        return await self._chat.answer(self._delete(response_id))

    async def _create(self, request: ResponsesRequest) -> ResponsesResponse | Events:
        if request.background and (self._store is None or not request.store):
            raise VLLMValidationError(
                "`background` needs a response that is stored: a server with VLLM_ENABLE_RESPONSES_API_STORE=1, and "
                "`store` not false.",
                parameter="background",
            )
        work = await self._begin(request)
        if request.background:
            return self._start_in_background(work)
        if request.stream:
            events = ResponseEvents(work.namespaces)
            return await self._chat.stream(work.events(events), events.failure)
        return await work.run()

    async def _count(self, request: ResponsesRequest) -> CountedInput:
        chat_request = request.to_chat(self._conversation(request), request.chat_tools())
        return CountedInput(input_tokens=await self._chat.count_tokens(chat_request))

    def _conversation(self, request: ResponsesRequest) -> list[dict[str, Any]]:
        given = request.input if isinstance(request.input, str) else self._whole_items(request.input)
        return self._earlier_messages(request.previous_response_id) + chat_messages(given)

    def _whole_items(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With what is referred to in place of the references."""
        return [
            self._stored_item(item, f"input[{i}]") if item.get("type") == "item_reference" else item
            for i, item in enumerate(items)
        ]

    def _stored_item(self, reference: dict[str, Any], place: str) -> dict[str, Any]:
        if self._store is None:
            raise refusal(
                place,
                "refers to an item of a stored response, and responses are not stored here: send items whole, which "
                "clients do with `store`: false, or start the server with VLLM_ENABLE_RESPONSES_API_STORE=1.",
            )
        item_id = text_field(reference, "id", place)
        item = self._store.get_item(item_id)
        if item is None:
            raise VLLMNotFoundError(f"There is no item {item_id[:64]!r}.", parameter=f"{place}.id")
        return item

    async def _begin(self, request: ResponsesRequest) -> _Work:
        messages, tools = self._conversation(request), request.chat_tools()
        chat_request = request.to_chat(messages, tools)
        if request.wants_logprobs and (self._chat.options.reasoning_parser or chat_request.wants_tool_calls):
            raise VLLMValidationError(
                "Log-probabilities are not available with tools or a --reasoning-parser: items do not hold tokens.",
                parameter="include",
            )
        generation = await self._chat.begin(chat_request, f"resp_{uuid.uuid4().hex}")
        store = self._store if request.store else None
        return _Work(self._chat, request, chat_request, generation, messages, store, tools.namespaces)

    def _earlier_messages(self, response_id: str | None) -> list[dict[str, Any]]:
        if response_id is None:
            return []
        record = self._find(response_id, "previous_response_id")
        if record.response["status"] not in ("completed", "incomplete"):
            raise VLLMValidationError(
                f"`previous_response_id` names a response that is {record.response['status']}.",
                parameter="previous_response_id",
            )
        return record.messages

    def _find(self, response_id: str, parameter: str = "response_id") -> StoredResponse:
        if self._store is None:
            raise VLLMNotFoundError(
                "Responses are not stored: the server runs without VLLM_ENABLE_RESPONSES_API_STORE=1.",
                parameter=parameter,
            )
        record = self._store.get(response_id)
        if record is None:
            raise VLLMNotFoundError(f"There is no response {response_id[:64]!r}.", parameter=parameter)
        return record

    async def _retrieve(self, response_id: str) -> ResponsesResponse:
        return ResponsesResponse(**self._find(response_id).response)

    async def _delete(self, response_id: str) -> DeletedResponse:
        self._find(response_id)
        await self._stop(response_id)
        if self._store is not None:
            self._store.delete(response_id)
        return DeletedResponse(id=response_id)

    async def _cancel(self, response_id: str) -> ResponsesResponse:
        """Of one that has ended, the response as it is."""
        response = self._find(response_id).response
        if not response["background"]:
            raise VLLMValidationError("Only a response in the background can be cancelled.", parameter="response_id")
        await self._stop(response_id)
        return await self._retrieve(response_id)

    async def _stop(self, response_id: str) -> None:
        """Until it has ended, whichever front runs it."""
        task = self._background.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        elif self._store is not None and self._store.is_shared:
            self._store.ask_to_cancel(response_id)
            while (record := self._store.get(response_id)) and record.response["status"] == "in_progress":
                await asyncio.sleep(_HEED_SECONDS)
            self._store.forget_cancel(response_id)

    async def _heed_cancels(self, store: ResponseStore) -> None:
        """End what runs here and other fronts were asked to end."""
        while self._background:
            for response_id in store.asked_to_cancel():
                if (task := self._background.get(response_id)) is not None:
                    task.cancel()
            await asyncio.sleep(_HEED_SECONDS)

    def _start_in_background(self, work: _Work) -> ResponsesResponse:
        response = work.response("in_progress")
        work.keep(response)
        task = asyncio.create_task(self._run_in_background(work))
        self._background[response.id] = task
        task.add_done_callback(lambda _: self._background.pop(response.id, None))
        if self._store is not None and self._store.is_shared and (self._heeding is None or self._heeding.done()):
            self._heeding = asyncio.create_task(self._heed_cancels(self._store))
        return response

    async def _run_in_background(self, work: _Work) -> None:
        try:
            await self._in_flight.run(work.run(), _never)
        except asyncio.CancelledError:
            work.keep(work.response("cancelled"))
        except Exception as exception:
            told = error_from(exception).error
            status = "cancelled" if isinstance(exception, ServerShutdown) else "failed"
            work.keep(work.response(status, error={"code": told.type, "message": told.message}))


async def _never() -> Any:
    """What is received from a client that does not matter."""
    await asyncio.Event().wait()


class _Work:
    """One response in the making. store: where it goes, if anywhere. namespaces: see `Tools`."""

    def __init__(
        self,
        chat: OpenAIServingChat,
        request: ResponsesRequest,
        chat_request: ChatCompletionRequest,
        generation: Generation,
        messages: list[dict[str, Any]],
        store: ResponseStore | None,
        namespaces: Namespaces,
    ) -> None:
        self.namespaces = namespaces
        self._chat = chat
        self._request = request
        self._chat_request = chat_request
        self._generation = generation
        self._messages = messages
        self._store = store
        self._blocks = chat.blocks(chat_request, generation)
        self._formatter = chat.formatter(chat_request, generation.params[0])
        self._logprobs: list[Any] = []
        self._num_output = 0
        self._num_cached = 0
        self._finish_reason: str | None = None

    @property
    def _is_cut(self) -> bool:
        return self._finish_reason == "length"

    async def run(self) -> ResponsesResponse:
        (output,) = await self._chat.collect(self._generation)
        for _ in self._take(output):
            pass
        response = self._ended()
        self._chat.request_logger.log_output(response.id, 0, output.outputs[0].text, self._finish_reason)
        return response

    async def events(self, events: ResponseEvents) -> AsyncGenerator[bytes, None]:
        begun = self.response("in_progress")
        yield events.lifecycle("created", begun)
        yield events.lifecycle("in_progress", begun)
        async with aclosing(self._generation.outputs) as outputs:
            async for _, output in outputs:
                for change in self._take(output):
                    yield events.change(change, self._logprobs, self._is_cut)
        ended = self._ended()
        yield events.lifecycle(ended.status, ended)

    def _take(self, output: RequestOutput) -> Iterator[Change]:
        (completion,) = output.outputs
        self._num_cached = output.num_cached_tokens or self._num_cached
        self._num_output += len(completion.token_ids)
        self._finish_reason = completion.finish_reason
        if (logprobs := chat_logprobs(self._chat_request, self._formatter, completion)) is not None:
            self._logprobs += logprobs["content"]
        return self._blocks.feed(completion)

    def _ended(self) -> ResponsesResponse:
        """The whole response, kept if it is to be."""
        row = self._blocks.row
        response = self.response(
            "incomplete" if self._is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if self._is_cut else None,
            output=[self._item(block, item_status(block is row[-1], self._is_cut)) for block in row],
            usage=self._usage(),
        )
        self.keep(response)
        return response

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        return item_of(block, self._logprobs, status, self.namespaces)

    def keep(self, response: ResponsesResponse) -> None:
        if self._store is not None:
            messages = [*self._messages, self._blocks.message()]
            self._store.put(response.id, StoredResponse(response.model_dump(), messages))

    def response(self, status: Any, **fields: Any) -> ResponsesResponse:
        request, (params,) = self._request, self._generation.params
        return ResponsesResponse(
            id=self._generation.id,
            created_at=self._generation.created,
            status=status,
            background=bool(request.background),
            frequency_penalty=params.frequency_penalty,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata,
            model=self._generation.model,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            presence_penalty=params.presence_penalty,
            previous_response_id=request.previous_response_id,
            reasoning=request.reasoning,
            service_tier=request.service_tier,
            store=self._store is not None,
            temperature=params.temperature,
            text=request.text or {"format": {"type": "text"}},
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            top_logprobs=request.top_logprobs,
            top_p=params.top_p,
            truncation=request.truncation or "disabled",
            user=request.user,
            **fields,
        )

    def _usage(self) -> ResponseUsage:
        num_prompt = len(self._generation.prompts[0].token_ids)
        return ResponseUsage(
            input_tokens=num_prompt,
            input_tokens_details=InputTokensDetails(cached_tokens=self._num_cached),
            output_tokens=self._num_output,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._blocks.num_reasoning_tokens),
            total_tokens=num_prompt + self._num_output,
        )
