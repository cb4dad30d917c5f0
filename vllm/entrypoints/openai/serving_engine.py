"""What the generating endpoints share: limits of lengths, ids, the way to the engine, usage.

`create_*` methods of the subclasses return a response, an `ErrorResponse`, or `Events` to stream; they raise
nothing but cancellation. Request ids: what the client sees is `<prefix>-<its id>`; the engine gets an id of its own
for each prompt.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vllm import envs
from vllm.core.outputs import GRAMMAR_FAULT
from vllm.engine.client import EngineClient
from vllm.engine.text.beam_search import check_search, search_async
from vllm.engine.text.limits import check_entries
from vllm.engine.text.logprobs import add_texts
from vllm.entrypoints.fields import in_terms_of, note, renamed
from vllm.entrypoints.openai.errors import error_from
from vllm.entrypoints.openai.logprobs import LogprobsFormatter, TokenNames, prompt_logprobs
from vllm.entrypoints.openai.middleware.request_id import presentable_id, random_id
from vllm.entrypoints.openai.protocol import ErrorResponse, PromptLogprobs, PromptTokensDetails, UsageInfo
from vllm.entrypoints.openai.protocol.base import now
from vllm.entrypoints.openai.protocol.sampling import SamplingFields
from vllm.entrypoints.openai.protocol.stream import Usage, error_events
from vllm.entrypoints.openai.renderer import PromptRenderer, RenderedPrompt
from vllm.entrypoints.openai.request_logger import RequestLogger
from vllm.entrypoints.openai.serving_models import OpenAIServingModels
from vllm.entrypoints.openai.sse import Events
from vllm.entrypoints.utils import merge_generators
from vllm.exceptions import EngineGenerateError, VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

R = TypeVar("R")

_INLINE_SIZE = 256
"""Choices and positions with log-probabilities that an answer has if it is made within the event loop."""


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What the command line says about answers; see `cli_args`."""

    return_tokens_as_token_ids: bool = False
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    response_role: str = "assistant"
    sse_keep_alive_interval: float = 0
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    tool_strict_level: str = "auto"
    reasoning_parser: str | None = None
    exclude_tools_when_tool_choice_none: bool = False
    strict_max_tokens: bool = False


@dataclass(kw_only=True)
class Generation:
    """One API request on its way through the engine.

    prompts[i] gives the choices i*n to i*n+n-1.
    """

    id: str
    model: str
    prompts: list[RenderedPrompt]
    params: list[SamplingParams]
    outputs: AsyncGenerator[tuple[int, RequestOutput], None]
    created: int = field(default_factory=now)


class OpenAIServing:
    def __init__(
        self,
        engine_client: EngineClient,
        models: OpenAIServingModels,
        renderer: PromptRenderer,
        options: ServingOptions,
        request_logger: RequestLogger,
        default_sampling_params: Mapping[str, Any],
    ) -> None:
        self.engine_client = engine_client
        self.models = models
        self.renderer = renderer
        self.options = options
        self.request_logger = request_logger
        self.max_model_len: int = engine_client.model_config.max_len
        self._defaults = dict(default_sampling_params)
        self._names = TokenNames(engine_client.tokenizer)
        self._numbers = itertools.count()
        self._nonce = uuid.uuid4().hex[:8]

    async def answer(self, work: Awaitable[R]) -> R | ErrorResponse:
        """The result of `work`, or what its exception means to the client."""
        try:
            return await work
        except Exception as exception:
            return error_from(exception)

    async def stream(
        self, events: AsyncGenerator[bytes, None], on_error: Callable[[ErrorResponse], bytes] = error_events
    ) -> Events:
        return await Events(events, self.options.sse_keep_alive_interval, on_error).prime()

    def response_id(self, prefix: str, request: SamplingFields, raw_request: Any) -> str:
        """By the header X-Request-Id, else the body's request_id, else a random one."""
        if request.request_id is not None and presentable_id(request.request_id) is None:
            raise VLLMValidationError(
                "`request_id` may hold up to 128 letters, digits and any of ._-:+/=@.", parameter="request_id"
            )
        if raw_request is None:
            return f"{prefix}-{request.request_id or random_id()}"
        state = raw_request.state
        state.request_id = getattr(state, "request_id", None) or request.request_id or random_id()
        return f"{prefix}-{state.request_id}"

    def generate(
        self,
        request: SamplingFields,
        response_id: str,
        prompts: list[RenderedPrompt],
        build_params: Callable[[RenderedPrompt], SamplingParams],
    ) -> Generation:
        """Prepare the engine's work for all prompts; it begins when `outputs` is first read."""
        self._check_count(request, len(prompts))
        first = build_params(prompts[0])
        check_entries(first, len(prompts))
        params = [first, *map(build_params, prompts[1:])]
        self._check_prompt_logprobs(prompts, first)
        self.request_logger.log_inputs(response_id, prompts, params)
        generators = [self._submit(request, response_id, *pair) for pair in zip(prompts, params, strict=True)]
        return Generation(
            id=response_id,
            model=self.models.resolve(request.model),
            prompts=prompts,
            params=params,
            outputs=self._checked(request, merge_generators(generators)),
        )

    async def check_structured_outputs(self, generation: Generation) -> None:
        """A constraint that cannot be used is refused before a stream begins."""
        for params in generation.params[:1]:
            if params.structured_outputs is not None:
                await self.engine_client.check_structured_outputs(params)

    def _submit(
        self, request: SamplingFields, response_id: str, prompt: RenderedPrompt, params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        inputs = TokensPrompt(prompt_token_ids=prompt.token_ids)
        if prompt.text is not None:
            inputs["prompt"] = prompt.text
        if request.cache_salt is not None:
            inputs["cache_salt"] = request.cache_salt
        if prompt.images is not None:
            inputs["multi_modal_data"] = prompt.images
        engine_id = f"{response_id}-{self._nonce}{next(self._numbers)}"
        if request.use_beam_search:
            check_search(request.num_choices, self.engine_client.capabilities, "n")
            self.engine_client.check_params(params)
            return self._beam_search(request, inputs, params, engine_id)
        adapter = self.models.lora_request(request.model)
        return self.engine_client.generate(inputs, params, engine_id, lora_request=adapter, priority=request.priority)

    async def _beam_search(
        self, request: SamplingFields, inputs: TokensPrompt, params: SamplingParams, engine_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        beams = request.beam_search_params(params.max_tokens or 1)
        eos = list(self.engine_client.eos_token_ids)
        options: dict[str, Any] = {
            "num_logprobs": params.logprobs or 0,
            "priority": request.priority,
            "lora_request": self.models.lora_request(request.model),
        }
        output = await search_async(self.engine_client, inputs, beams, engine_id, eos, **options)
        for completion in output.outputs:
            positions: Any = completion.logprobs
            completion.logprobs = None
            if params.logprobs is not None:
                token_ids = completion.token_ids
                reported = [_most_likely(*at, params.logprobs) for at in zip(positions, token_ids, strict=True)]
                completion.logprobs = add_texts(reported, token_ids, self.engine_client.tokenizer, params)
        yield output

    async def _checked(
        self, request: SamplingFields, outputs: AsyncGenerator[tuple[int, RequestOutput], None]
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        async with aclosing(outputs):
            with in_terms_of(request):
                async for index, output in outputs:
                    for completion in output.outputs:
                        if completion.finish_reason == "error":
                            raise _failure(str(completion.stop_reason or "no reason given"))
                    yield index, output

    async def made(self, make: Callable[[], R], outputs: list[RequestOutput]) -> R:
        """An answer of `outputs`. One of many choices or log-probabilities is made in a thread."""
        size = sum(
            len(output.prompt_logprobs or ()) + sum(1 + len(one.logprobs or ()) for one in output.outputs)
            for output in outputs
        )
        return make() if size <= _INLINE_SIZE else await asyncio.to_thread(make)

    async def collect(self, generation: Generation) -> list[RequestOutput]:
        """The final output of each prompt."""
        finals: dict[int, RequestOutput] = {}
        async with aclosing(generation.outputs) as outputs:
            async for index, output in outputs:
                finals[index] = output
        return [finals[index] for index in range(len(generation.prompts))]

    def truncate(self, request: SamplingFields, prompt: RenderedPrompt, requested: int | None) -> RenderedPrompt:
        """`truncate_prompt_tokens` and `truncation_side`."""
        keep = request.truncate_prompt_tokens
        if keep is None:
            return prompt
        if keep == 0 or keep > self.max_model_len:
            raise VLLMValidationError(
                f"`truncate_prompt_tokens` must be -1 or from 1 to {self.max_model_len} (max_model_len), not {keep}.",
                parameter="truncate_prompt_tokens",
            )
        if keep == -1:
            asked = requested if requested is not None and requested < self.max_model_len else 1
            keep = max(1, self.max_model_len - asked)
        ids = prompt.token_ids
        return prompt._replace(token_ids=ids[:keep] if request.truncated == "right" else ids[-keep:])

    def output_limit(
        self, request: SamplingFields, requested: int | None, num_prompt_tokens: int, name: str = "max_tokens"
    ) -> int:
        """How many tokens may be generated: what was asked for, as far as the context has room.

        With --strict-max-tokens what the context has no room for is refused. The operator's bound holds for all.
        """
        limit, bound = self.max_model_len, self.engine_client.model_config.max_output_tokens
        if bound is not None and (requested is None or requested > bound):
            if requested is not None:
                note(
                    request.sent_to, renamed(name, request.names), f"is more than this server gives, and cut to {bound}"
                )
            requested = bound
        if num_prompt_tokens >= limit:
            room = "" if num_prompt_tokens > limit else ", which leaves no room for output (at least 1 token)"
            raise VLLMValidationError(
                f"This model's maximum context length is {limit} tokens. However, your prompt contains "
                f"{num_prompt_tokens} tokens{room}. Shorten the prompt.",
                parameter="prompt",
            )
        remaining = limit - num_prompt_tokens
        default = self._defaults.get("max_tokens")
        wanted = default if requested is None else requested
        if requested is None or requested <= remaining:
            return remaining if wanted is None else min(wanted, remaining)
        if self.options.strict_max_tokens:
            raise VLLMValidationError(
                f"`{name}`={requested} is more than the {remaining} tokens that a prompt of {num_prompt_tokens} tokens "
                f"leaves of max_model_len={limit}.",
                parameter=name,
            )
        note(request.sent_to, renamed(name, request.names), "is more than the context has left, and cut to that")
        return remaining

    def formatter(self, request: SamplingFields, params: SamplingParams) -> LogprobsFormatter:
        """For one choice. A beam has the token that ended it only where its text has it."""
        as_ids = request.return_tokens_as_token_ids
        return LogprobsFormatter(
            self._names,
            as_ids=self.options.return_tokens_as_token_ids if as_ids is None else as_ids,
            skips_special=params.skip_special_tokens,
            has_stop_token=params.include_stop_str_in_output or request.use_beam_search,
        )

    def prompt_logprobs(self, request: SamplingFields, output: RequestOutput) -> PromptLogprobs | None:
        """Where they were asked for; echoing computes them too."""
        if request.prompt_logprobs is None or output.prompt_logprobs is None:
            return None
        return prompt_logprobs(output.prompt_logprobs)

    @property
    def defaults(self) -> dict[str, Any]:
        return self._defaults

    def usage(
        self, outputs: list[RequestOutput], count_output: bool = True, num_reasoning: int | None = None
    ) -> UsageInfo:
        num_prompt = sum(len(output.prompt_token_ids or ()) for output in outputs)
        num_output = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        num_output = num_output if count_output else 0
        num_cached = sum(output.num_cached_tokens or 0 for output in outputs)
        with_details = self.options.enable_prompt_tokens_details
        return UsageInfo(
            prompt_tokens=num_prompt,
            completion_tokens=num_output,
            total_tokens=num_prompt + num_output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached) if with_details else None,
            completion_tokens_details=None if num_reasoning is None else {"reasoning_tokens": num_reasoning},
        )

    def stream_usage(
        self, num_prompt: int, num_output: int, num_cached: int, num_reasoning: int | None = None
    ) -> Usage:
        details = {"cached_tokens": num_cached} if self.options.enable_prompt_tokens_details else None
        of_output = None if num_reasoning is None else {"reasoning_tokens": num_reasoning}
        return Usage(num_prompt, num_prompt + num_output, num_output, details, of_output)

    def wants_usage(self, request: SamplingFields) -> bool:
        return request.include_usage or self.options.enable_force_include_usage

    def _check_count(self, request: SamplingFields, num_prompts: int) -> None:
        if (total := request.num_choices * num_prompts) > (most := envs.VLLM_MAX_N_SEQUENCES):
            raise VLLMValidationError(
                f"`n` times the number of prompts is {total}; at most {most} fit one request.", parameter="n"
            )

    def _check_prompt_logprobs(self, prompts: list[RenderedPrompt], params: SamplingParams) -> None:
        if (count := params.prompt_logprobs) is None:
            return
        num_each = 1 + (self.engine_client.model_config.vocab_size if count == -1 else count)
        total, most = num_each * sum(len(prompt.token_ids) for prompt in prompts), envs.VLLM_MAX_PROMPT_LOGPROBS
        if total > most:
            raise VLLMValidationError(
                f"{num_each} log-probabilities for each token of the prompts are {total}; at most {most} fit one "
                "request (VLLM_MAX_PROMPT_LOGPROBS). Ask for fewer, or of fewer prompts at once.",
                parameter="prompt_logprobs",
            )


def _failure(reason: str) -> Exception:
    if reason.startswith(GRAMMAR_FAULT):
        return VLLMValidationError(reason, parameter="structured_outputs")
    return EngineGenerateError(f"The engine failed on this request: {reason}")


def _most_likely(position: dict[int, Logprob], chosen: int, count: int) -> dict[int, Logprob]:
    """A position's chosen token and its `count` most likely ones."""
    return {i: entry for i, entry in position.items() if i == chosen or (entry.rank or 0) <= count}
