"""`/v1/chat/completions`.

Without parsers a choice's text becomes message content as it is. With a reasoning or a tool parser it goes through a
`ChatOutput`, one for each choice, whole or piece by piece.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from vllm.entrypoints.chat_output.forced_tools import forces_calls, parameters_of
from vllm.entrypoints.chat_output.marks import any_special, token_of
from vllm.entrypoints.chat_output.parsers.reasoning import Preceding
from vllm.entrypoints.chat_output.reasoning import ReasoningMarkers
from vllm.entrypoints.chat_output.strict_tools import calls_grammar, holds_calls
from vllm.entrypoints.chat_utils import joined_text
from vllm.entrypoints.fields import in_terms_of
from vllm.entrypoints.openai.blocks import Blocks
from vllm.entrypoints.openai.chat_output import (
    ChatOutput,
    check_parsers,
    is_empty,
    needs_parser,
    num_reasoning_tokens,
    tool_marks,
)
from vllm.entrypoints.openai.logprobs import LogprobsFormatter
from vllm.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatLogprobs,
    ErrorResponse,
)
from vllm.entrypoints.openai.protocol.stream import DONE, ChatChunk, ChatChunkChoice, Delta, event
from vllm.entrypoints.openai.renderer import RenderedPrompt
from vllm.entrypoints.openai.serving_engine import Generation, OpenAIServing
from vllm.entrypoints.openai.sse import Events
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

_MOST_TOOLS_CHECKED = 64
"""One by one, to say which is at fault."""


class OpenAIServingChat(OpenAIServing):
    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        vocab_size = self.engine_client.model_config.vocab_size
        tokenizer = self.engine_client.tokenizer
        self.markers = ReasoningMarkers(self.options.reasoning_parser, tokenizer, vocab_size)
        self._token_of = functools.partial(token_of, tokenizer=tokenizer, vocab_size=vocab_size)
        marks = (*self.markers.marks, *tool_marks(self.options.tool_call_parser))
        self._marks_are_special = any_special(marks, tokenizer, vocab_size)

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: Any = None
    ) -> ChatCompletionResponse | Events | ErrorResponse:
        return await self.answer(self._create(request, raw_request))

    async def _create(self, request: ChatCompletionRequest, raw_request: Any) -> ChatCompletionResponse | Events:
        generation = await self.begin(request, self.response_id("chatcmpl", request, raw_request))
        if request.stream:
            return await self.stream(_ChatStream(self, request, generation).events())
        (output,) = await self.collect(generation)
        return await self.made(lambda: self._response(request, generation, output), [output])

    async def begin(self, request: ChatCompletionRequest, response_id: str) -> Generation:
        """All checks are done and the prompt is made; other endpoints that amount to a chat go on from here."""
        with in_terms_of(request):
            self.models.resolve(request.model)
            check_parsers(request, self.options)
            self._hold_calls(request)
            prompt = await self.render(request)
            generation = self.generate(request, response_id, [prompt], lambda prompt: self._params(request, prompt))
            await self._check_form(request, generation)
        return generation

    async def count_tokens(self, request: ChatCompletionRequest) -> int:
        """Of the prompt."""
        with in_terms_of(request):
            self.models.resolve(request.model)
            return len((await self.render(request)).token_ids)

    async def _check_form(self, request: ChatCompletionRequest, generation: Generation) -> None:
        try:
            await self.check_structured_outputs(generation)
        except VLLMValidationError:
            if request.holds_calls:
                await self._check_each_tool(request.tools or [])
            raise

    async def _check_each_tool(self, tools: list[dict[str, Any]]) -> None:
        """Raises VLLMValidationError for the tool whose schema cannot be held to, if a single one is at fault."""
        for i, tool in enumerate(tools[:_MOST_TOOLS_CHECKED]):
            form = StructuredOutputsParams(json=parameters_of(tool))
            place = f"tools[{i}].function.parameters"
            shown = f"the tool {tool['function']['name'][:64]!r}: {place}"
            with in_terms_of({"structured_outputs.json": shown, "structured_outputs": place}):
                await self.engine_client.check_structured_outputs(SamplingParams(structured_outputs=form))

    def _hold_calls(self, request: ChatCompletionRequest) -> None:
        """Calls of the model's own accord are held to the schemas of tools that are `strict`."""
        name, tools, level = self.options.tool_call_parser, request.tools or [], self.options.tool_strict_level
        if name is None or not request.wants_tool_calls or forces_calls(request.tool_choice):
            return
        if holds_calls(tools, level):
            several, form = request.parallel_tool_calls is not False, request.constraint()
            grammar = calls_grammar(name, tools, level, several=several, form=form, token_of=self._token_of)
            request.hold_calls(grammar)

    async def render(self, request: ChatCompletionRequest) -> RenderedPrompt:
        effort = {"reasoning_effort": request.reasoning_effort} if request.reasoning_effort is not None else None
        if self.options.exclude_tools_when_tool_choice_none and request.tool_choice == "none":
            request.tools = None
        prompt = await self.renderer.render_chat(request, effort, request.truncated)
        return self.truncate(request, prompt, request.output_limit)

    def _params(self, request: ChatCompletionRequest, prompt: RenderedPrompt) -> SamplingParams:
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        limit = self.output_limit(request, request.output_limit, len(prompt.token_ids), name)
        params = request.build_sampling_params(
            limit, self.defaults, logprobs=request.num_logprobs, prompt_logprobs=request.prompt_logprobs
        )
        if params.structured_outputs is not None:
            params.reasoning_gate = self.markers.gate(_preceding(request, prompt))
        if self._marks_are_special and needs_parser(request, self.options):
            params.skip_special_tokens = False
        return params

    def blocks(self, request: ChatCompletionRequest, generation: Generation) -> Blocks:
        return Blocks(request, self.options, self.markers, _preceding(request, generation.prompts[0]))

    def new_output(self, request: ChatCompletionRequest, generation: Generation) -> ChatOutput:
        return ChatOutput(request, self.options, self.markers, _preceding(request, generation.prompts[0]))

    def role_of(self, request: ChatCompletionRequest) -> str:
        """Whose turn is generated: the assistant's, or that of the message which is continued."""
        return self.options.response_role if request.add_generation_prompt else str(request.messages[-1]["role"])

    def echo_of(self, request: ChatCompletionRequest) -> str:
        """The last message's text where it is to go before the output."""
        last = request.messages[-1]
        content = last.get("content")
        same_role = last.get("role") == self.role_of(request)
        return content if request.echo and same_role and isinstance(content, str) else ""

    def _response(
        self, request: ChatCompletionRequest, generation: Generation, output: RequestOutput
    ) -> ChatCompletionResponse:
        completions = sorted(output.outputs, key=lambda completion: completion.index)
        parsed = [self.new_output(request, generation) for _ in completions]
        params = generation.params[0]
        choices = [self._choice(request, params, *pair) for pair in zip(completions, parsed, strict=True)]
        for choice in choices:
            text = choice.message.content or ""
            self.request_logger.log_output(generation.id, choice.index, text, choice.finish_reason)
        return ChatCompletionResponse(
            id=generation.id,
            created=generation.created,
            model=generation.model,
            choices=choices,
            usage=self.usage([output], num_reasoning=num_reasoning_tokens(parsed)),
            prompt_logprobs=self.prompt_logprobs(request, output),
            prompt_token_ids=list(output.prompt_token_ids or ()) if request.return_token_ids else None,
            prompt_text=generation.prompts[0].text if request.return_prompt_text else None,
        )

    def _choice(
        self,
        request: ChatCompletionRequest,
        params: SamplingParams,
        completion: CompletionOutput,
        output: ChatOutput,
    ) -> ChatCompletionResponseChoice:
        return ChatCompletionResponseChoice(
            index=completion.index,
            message=output.message(self.role_of(request), completion, self.echo_of(request)),
            logprobs=chat_logprobs(request, self.formatter(request, params), completion),
            finish_reason=output.finish_reason(completion.finish_reason),
            stop_reason=completion.stop_reason,
            token_ids=list(completion.token_ids) if request.return_token_ids else None,
        )


def _preceding(request: ChatCompletionRequest, prompt: RenderedPrompt) -> Preceding:
    content = request.messages[-1].get("content") if request.continue_final_message else None
    turn = joined_text(content, "messages[-1].content", "parts") if content else ""
    return Preceding(turn, is_turn=True) if turn.strip() else Preceding(prompt.text or "")


def chat_logprobs(
    request: ChatCompletionRequest, formatter: LogprobsFormatter, completion: CompletionOutput
) -> ChatLogprobs | None:
    """Those of a piece of a choice, if they were asked for. formatter: the choice's."""
    if not request.logprobs or completion.logprobs is None:
        return None
    return formatter.chat(completion, request.top_logprobs or 0)


class _ChatStream:
    """One streamed answer: what was sent of each choice, and the events."""

    def __init__(self, serving: OpenAIServingChat, request: ChatCompletionRequest, generation: Generation) -> None:
        self._serving = serving
        self._request = request
        self._generation = generation
        self._formatters = [serving.formatter(request, generation.params[0]) for _ in range(request.num_choices)]
        self._begun = False
        self._num_tokens = [0] * request.num_choices
        self._num_prompt = len(generation.prompts[0].token_ids)
        self._num_cached = 0
        self._always_sent = bool(request.logprobs) or bool(request.return_token_ids)
        self._outputs: list[ChatOutput] = []
        if needs_parser(request, serving.options):
            self._outputs = [serving.new_output(request, generation) for _ in range(request.num_choices)]

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._generation.outputs) as outputs:
            async for _, output in outputs:
                self._num_cached = output.num_cached_tokens or self._num_cached
                if not self._begun:
                    for first in self._first_chunks(output):
                        yield event(first)
                for completion in output.outputs:
                    self._num_tokens[completion.index] += len(completion.token_ids)
                    choice = self._choice(completion)
                    if completion.finish_reason or self._always_sent or not is_empty(choice.delta):
                        yield event(self._chunk(choice))
        if self._serving.wants_usage(self._request):
            yield event(self._usage_chunk())
        yield DONE

    def _first_chunks(self, output: RequestOutput) -> list[ChatChunk]:
        """The role of every choice, and what is echoed."""
        self._begun = True
        role = self._serving.role_of(self._request)
        echo = self._serving.echo_of(self._request)
        indices = range(self._request.num_choices)
        chunks = [self._chunk(ChatChunkChoice(index, Delta(role=role, content=echo))) for index in indices]
        if self._request.return_token_ids:
            chunks[0].prompt_token_ids = list(output.prompt_token_ids or ())
        if self._request.return_prompt_text:
            chunks[0].prompt_text = self._generation.prompts[0].text
        return chunks

    def _choice(self, completion: CompletionOutput) -> ChatChunkChoice:
        return ChatChunkChoice(
            completion.index,
            self._delta(completion),
            chat_logprobs(self._request, self._formatters[completion.index], completion),
            self._finish_reason(completion),
            completion.stop_reason if completion.finish_reason else UNSET,
            list(completion.token_ids) if self._request.return_token_ids else UNSET,
        )

    def _delta(self, completion: CompletionOutput) -> Delta:
        if self._outputs:
            finished = completion.finish_reason is not None
            return self._outputs[completion.index].delta(completion.text, completion.token_ids, finished)
        return Delta(content=completion.text or UNSET)

    def _finish_reason(self, completion: CompletionOutput) -> str | None:
        reason = completion.finish_reason
        return self._outputs[completion.index].finish_reason(reason) if self._outputs else reason

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        generation = self._generation
        chunk = ChatChunk(generation.id, generation.created, generation.model, [choice])
        if self._request.continuous_usage:
            num_output = self._num_tokens[choice.index]
            num_reasoning = num_reasoning_tokens(self._outputs[choice.index : choice.index + 1])
            chunk.usage = self._serving.stream_usage(self._num_prompt, num_output, self._num_cached, num_reasoning)
        return chunk

    def _usage_chunk(self) -> ChatChunk:
        generation = self._generation
        num_reasoning = num_reasoning_tokens(self._outputs)
        usage = self._serving.stream_usage(self._num_prompt, sum(self._num_tokens), self._num_cached, num_reasoning)
        return ChatChunk(generation.id, generation.created, generation.model, [], usage=usage)
