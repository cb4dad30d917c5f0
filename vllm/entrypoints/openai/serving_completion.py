"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from vllm.entrypoints.fields import in_terms_of
from vllm.entrypoints.openai.logprobs import Echo, LogprobsFormatter, joined
from vllm.entrypoints.openai.protocol import (
    CompletionLogProbs,
    CompletionRequest,
    CompletionResponse,
    CompletionResponseChoice,
    ErrorResponse,
)
from vllm.entrypoints.openai.protocol.stream import DONE, CompletionChunk, CompletionChunkChoice, event
from vllm.entrypoints.openai.renderer import RenderedPrompt
from vllm.entrypoints.openai.serving_engine import Generation, OpenAIServing
from vllm.entrypoints.openai.sse import Events
from vllm.entrypoints.utils import in_turn
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams


class OpenAIServingCompletion(OpenAIServing):
    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None
    ) -> CompletionResponse | Events | ErrorResponse:
        return await self.answer(self._create(request, raw_request))

    async def _create(self, request: CompletionRequest, raw_request: Any) -> CompletionResponse | Events:
        with in_terms_of(request):
            self.models.resolve(request.model)
            response_id = self.response_id("cmpl", request, raw_request)
            prompts = await in_turn(lambda prompt: self._render(request, prompt), request.prompts)
            generation = self.generate(request, response_id, prompts, lambda prompt: self._params(request, prompt))
            await self.check_structured_outputs(generation)
        echoes = await in_turn(lambda prompt: self._echo(request, prompt), prompts if request.echo else [])
        if request.stream:
            return await self.stream(_CompletionStream(self, request, generation, echoes).events())
        outputs = await self.collect(generation)
        return await self.made(lambda: self._response(request, generation, echoes, outputs), outputs)

    async def _render(self, request: CompletionRequest, prompt: str | list[int]) -> RenderedPrompt:
        rendered = await self.renderer.render(prompt, request.add_special_tokens, request.truncated)
        return self.truncate(request, rendered, request.max_tokens)

    def _params(self, request: CompletionRequest, prompt: RenderedPrompt) -> SamplingParams:
        """Echoing a prompt alone still takes one step, which computes the prompt's log-probabilities."""
        limit = self.output_limit(request, request.max_tokens if request.wants_output else 1, len(prompt.token_ids))
        prompt_logprobs = request.prompt_logprobs
        if request.echo and request.logprobs is not None:
            prompt_logprobs = max(request.logprobs, prompt_logprobs or 0)
        return request.build_sampling_params(
            limit, self.defaults, logprobs=request.logprobs, prompt_logprobs=prompt_logprobs
        )

    async def _echo(self, request: CompletionRequest, prompt: RenderedPrompt) -> Echo:
        """Of a prompt that was cut, what is left."""
        is_cut = request.truncate_prompt_tokens is not None
        add_special_tokens = None if is_cut or prompt.text is None else request.add_special_tokens
        text = prompt.text if not is_cut and prompt.text is not None else await self.renderer.decode(prompt.token_ids)
        offsets = []
        if request.logprobs is not None:
            offsets = await self.renderer.offsets(text, prompt.token_ids, add_special_tokens)
        return Echo(text, prompt.token_ids, offsets)

    def _response(
        self, request: CompletionRequest, generation: Generation, echoes: list[Echo], outputs: list[RequestOutput]
    ) -> CompletionResponse:
        choices = [
            self._choice(request, generation.params[i], i, output, completion, echoes[i] if echoes else None)
            for i, output in enumerate(outputs)
            for completion in sorted(output.outputs, key=lambda completion: completion.index)
        ]
        for choice in choices:
            self.request_logger.log_output(generation.id, choice.index, choice.text, choice.finish_reason)
        return CompletionResponse(
            id=generation.id,
            created=generation.created,
            model=generation.model,
            choices=choices,
            usage=self.usage(outputs, request.wants_output),
        )

    def _choice(
        self,
        request: CompletionRequest,
        params: SamplingParams,
        prompt_index: int,
        output: RequestOutput,
        completion: CompletionOutput,
        echo: Echo | None,
    ) -> CompletionResponseChoice:
        piece = piece_of(request, self.formatter(request, params), completion, echo, output.prompt_logprobs)
        prompt_ids = list(output.prompt_token_ids or ())
        return CompletionResponseChoice(
            index=prompt_index * request.num_choices + completion.index,
            text=piece.text,
            logprobs=piece.logprobs,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            token_ids=piece.token_ids if request.return_token_ids else None,
            prompt_token_ids=prompt_ids if request.return_token_ids else None,
            prompt_logprobs=self.prompt_logprobs(request, output),
        )


@dataclass
class Piece:
    """What one output adds to a choice."""

    text: str
    token_ids: list[int]
    logprobs: CompletionLogProbs | None


def piece_of(
    request: CompletionRequest,
    formatter: LogprobsFormatter,
    completion: CompletionOutput,
    echo: Echo | None,
    prompt_logprobs: Any,
) -> Piece:
    """formatter: the choice's. echo: the prompt where it is to go before the output."""
    text, token_ids, logprobs = "", [], None
    if echo is not None:
        text, token_ids = echo.text, list(echo.token_ids)
        logprobs = formatter.echo(echo, prompt_logprobs) if request.logprobs is not None else None
    if request.wants_output:
        text += completion.text
        token_ids += completion.token_ids
        shown = formatter.completion(completion) if request.logprobs is not None else None
        logprobs = joined(logprobs, shown)
    return Piece(text, token_ids, logprobs)


class _CompletionStream:
    """One streamed answer: what was sent of each choice, and the events."""

    def __init__(
        self, serving: OpenAIServingCompletion, request: CompletionRequest, generation: Generation, echoes: list[Echo]
    ) -> None:
        num_choices = len(generation.prompts) * request.num_choices
        self._serving = serving
        self._request = request
        self._generation = generation
        self._echoes = echoes
        self._formatters = [
            serving.formatter(request, params) for params in generation.params for _ in range(request.num_choices)
        ]
        self._prompt_logprobs: list[Any] = [None] * len(generation.prompts)
        self._begun = [False] * num_choices
        self._num_tokens = [0] * num_choices
        self._num_cached = [0] * len(generation.prompts)
        self._plain = request.logprobs is None and not request.return_token_ids

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._generation.outputs) as outputs:
            async for prompt_index, output in outputs:
                self._num_cached[prompt_index] = output.num_cached_tokens or self._num_cached[prompt_index]
                self._prompt_logprobs[prompt_index] = output.prompt_logprobs or self._prompt_logprobs[prompt_index]
                for completion in output.outputs:
                    choice = self._choice(prompt_index, output, completion)
                    if choice is not None:
                        yield event(self._chunk(choice, prompt_index))
        if self._serving.wants_usage(self._request):
            yield event(self._usage_chunk())
        yield DONE

    def _choice(
        self, prompt_index: int, output: RequestOutput, completion: CompletionOutput
    ) -> CompletionChunkChoice | None:
        request = self._request
        index = prompt_index * request.num_choices + completion.index
        first = not self._begun[index]
        self._begun[index] = True
        self._num_tokens[index] += len(completion.token_ids) if request.wants_output else 0
        if self._plain and not self._echoes:
            if not completion.text and completion.finish_reason is None:
                return None
            return CompletionChunkChoice(index, completion.text, None, completion.finish_reason, completion.stop_reason)
        echo = self._echoes[prompt_index] if first and self._echoes else None
        piece = piece_of(request, self._formatters[index], completion, echo, self._prompt_logprobs[prompt_index])
        return CompletionChunkChoice(
            index,
            piece.text,
            piece.logprobs,
            completion.finish_reason,
            completion.stop_reason,
            piece.token_ids if request.return_token_ids else UNSET,
            list(output.prompt_token_ids or ()) if request.return_token_ids and first else UNSET,
        )

    def _chunk(self, choice: CompletionChunkChoice, prompt_index: int) -> CompletionChunk:
        generation = self._generation
        chunk = CompletionChunk(generation.id, generation.created, generation.model, [choice])
        if self._request.continuous_usage:
            num_prompt = len(generation.prompts[prompt_index].token_ids)
            num_output = self._num_tokens[choice.index]
            chunk.usage = self._serving.stream_usage(num_prompt, num_output, self._num_cached[prompt_index])
        return chunk

    def _usage_chunk(self) -> CompletionChunk:
        generation = self._generation
        num_prompt = sum(len(prompt.token_ids) for prompt in generation.prompts)
        usage = self._serving.stream_usage(num_prompt, sum(self._num_tokens), sum(self._num_cached))
        return CompletionChunk(generation.id, generation.created, generation.model, [], usage=usage)
