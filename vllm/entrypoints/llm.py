"""`LLM`: a model in this process, for programs that have their prompts at hand."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.llm_engine import LLMEngine
from vllm.engine.text.beam_search import BeamSearch, check_search, next_logprobs, step_params
from vllm.engine.text.images import ImageIntake
from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.chat_utils import detect_content_format, parse_chat_messages
from vllm.entrypoints.fields import note
from vllm.entrypoints.template_fit import NOT_SHOWN, fitted, traits_of
from vllm.exceptions import VLLMValidationError
from vllm.inputs import PromptType, TokensPrompt
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.outputs import BeamSearchOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext

logger = init_logger(__name__)

Conversation = list[dict[str, Any]]
Progress = bool | Callable[..., Any]
"""Whether to show a progress bar, or what makes one (called as tqdm is)."""


class LLM:
    """A text generator.

    model: a checkpoint directory, a GGUF file or a hub id. Every field of `EngineArgs` is a keyword argument; no
    statistics are logged unless disable_log_stats=False. Raises TypeError for an unknown keyword, ValueError for what
    cannot run.
    """

    def __init__(self, model: str, **engine_args: Any) -> None:
        self._start(EngineArgs(model=str(model), **{"disable_log_stats": True, **engine_args}))

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        llm = cls.__new__(cls)
        llm._start(engine_args)
        return llm

    def _start(self, engine_args: EngineArgs) -> None:
        self.llm_engine = LLMEngine.from_engine_args(engine_args, UsageContext.LLM_CLASS)
        self.request_counter = itertools.count()
        self.runner_type = "generate"
        self.supported_tasks = self.llm_engine.get_supported_tasks()
        self.chat_template = self.llm_engine.model_config.chat_template
        self._enqueued: dict[str, None] = {}
        self._results: dict[str, RequestOutput] = {}
        self._finalizer = weakref.finalize(self, self.llm_engine.shutdown)

    @property
    def model_config(self) -> ModelConfig:
        return self.llm_engine.model_config

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        """The checkpoint's defaults, as fields of `SamplingParams`."""
        return self.llm_engine.default_sampling_params

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no parameters are given: the checkpoint's defaults, else those of `SamplingParams`."""
        return SamplingParams.from_optional(**self.default_sampling_params)

    def get_tokenizer(self) -> Tokenizer:
        """Raises ValueError with skip_tokenizer_init."""
        return self.llm_engine.get_tokenizer()

    # Generating.

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Progress = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        *,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
    ) -> list[RequestOutput]:
        """Generate from each prompt; the results are in the order of the prompts.

        prompts: a text, a list of token ids, a dict with "prompt" or "prompt_token_ids", or a list of those.
        sampling_params: for all prompts, or one for each. prompt_token_ids: the older way to give token ids.
        A request that fails on the device has finish_reason "error"; the others are not affected. If this raises, no
        request of the call is left behind.
        """
        if prompt_token_ids is not None:
            if prompts is not None:
                raise VLLMValidationError("give prompts or prompt_token_ids, not both.", parameter="prompt_token_ids")
            prompts = prompt_token_ids
        ids = self._add_requests(
            prompts, sampling_params, lora_request, priority, tokenization_kwargs, mm_processor_kwargs
        )
        return self._run(ids, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Progress = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or each of several, put into a prompt by the chat template."""
        prompts = self._render(
            messages,
            chat_template,
            chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **(chat_template_kwargs or {}),
        )
        ids = self._add_requests(
            prompts, sampling_params, lora_request, priority, tokenization_kwargs, mm_processor_kwargs
        )
        return self._run(ids, use_tqdm)

    def enqueue(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: int | Sequence[int] | None = None,
        use_tqdm: Progress = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Queue prompts for `wait_for_completion`; returns their request ids.

        use_tqdm: queueing is done at once, so there is nothing to show.
        """
        ids = self._add_requests(
            prompts, sampling_params, lora_request, priority, tokenization_kwargs, mm_processor_kwargs
        )
        self._enqueued.update(dict.fromkeys(ids))
        return ids

    def enqueue_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Progress = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Queue conversations for `wait_for_completion`; the arguments are those of `chat`."""
        prompts = self._render(
            messages,
            chat_template,
            chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **(chat_template_kwargs or {}),
        )
        return self.enqueue(
            prompts, sampling_params, lora_request, priority, use_tqdm, tokenization_kwargs, mm_processor_kwargs
        )

    def wait_for_completion(self, output_type: type | None = None, *, use_tqdm: Progress = True) -> list[RequestOutput]:
        """Run what was enqueued; the results are in that order."""
        if output_type not in (None, RequestOutput):
            raise ValueError(f"output_type={output_type!r} is not supported: a text generator gives RequestOutput")
        ids, self._enqueued = list(self._enqueued), {}
        return self._run(ids, use_tqdm)

    def beam_search(
        self,
        prompts: Sequence[PromptType],
        params: BeamSearchParams,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: Progress = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """For each prompt its best beams, best first; tokens and text include the prompt.

        Beams that ended with EOS hold its token. concurrency_limit: how many prompts are searched at once; None: all.
        """
        tokenizer, config, processor = self.llm_engine.tokenizer, self.model_config, self.llm_engine.input_processor
        check_search(params.beam_width, processor.capabilities)
        searches, eos, singles = [], processor.eos_token_ids, _as_list(prompts)
        for prompt, lora in zip(singles, _one_each("lora_request", lora_request, len(singles)), strict=True):
            token_ids = processor.prompt_token_ids(prompt)
            searches.append(
                BeamSearch(prompt, token_ids, params, eos, config.max_len, keeps_eos=True, lora_request=lora)
            )
        limit = concurrency_limit or len(searches)
        for start in range(0, len(searches), max(limit, 1)):
            self._search(searches[start : start + limit], step_params(params, config.vocab_size), use_tqdm)
        return [BeamSearchOutput(search.result(tokenizer)) for search in searches]

    def _search(self, searches: list[BeamSearch], params: SamplingParams, use_tqdm: Progress) -> None:
        while live := [search for search in searches if search.beams]:
            beams = [beam for search in live for beam in search.beams]
            prompts = [_continued(beam.orig_prompt, beam.tokens) for beam in beams]
            outputs = iter(self.generate(prompts, params, use_tqdm, [beam.lora_request for beam in beams]))
            for search in live:
                search.advance([next_logprobs(next(outputs)) for _ in search.beams])

    # What a text generator does not do.

    def encode(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise _pooling_error("encode", "pooling")

    def embed(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise _pooling_error("embed", "embedding")

    def classify(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise _pooling_error("classify", "classification")

    def score(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise _pooling_error("score", "scoring")

    def reward(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise _pooling_error("reward", "reward")

    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("collective_rpc is not supported: one process drives all cores, by compiled programs")

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        raise NotImplementedError("apply_model is not supported: the model is a compiled program, not a torch module")

    def start_profile(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("there is no profiler")

    def stop_profile(self) -> None:
        raise NotImplementedError("there is no profiler")

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        raise NotImplementedError("sleep is not supported: the model stays on the device")

    def wake_up(self, tags: list[str] | None = None) -> None:
        raise NotImplementedError("wake_up is not supported: the engine never sleeps")

    # State.

    def get_metrics(self) -> list[Any]:
        """Every metric at this moment, with `name`, `labels` and `value` (or `count`, `sum` and `buckets`)."""
        return self.llm_engine.get_metrics()

    def get_world_size(self, include_dp: bool = True) -> int:
        """Cores that the model is split over."""
        return self.llm_engine.vllm_config.parallel_config.tensor_parallel_size

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget cached prefixes; with `reset_connector` those in the KV store too."""
        return self.llm_engine.reset_prefix_cache(reset_running_requests, reset_connector)

    def reset_mm_cache(self) -> None:
        """There is none: prompts are text."""

    def shutdown(self) -> None:
        """Release the device; this object is of no use afterwards."""
        self._finalizer()

    # The way through the engine.

    def _add_requests(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None,
        priority: int | Sequence[int] | None,
        tokenization_kwargs: Mapping[str, Any] | None,
        mm_processor_kwargs: Mapping[str, Any] | None,
    ) -> list[str]:
        """Queue all prompts, or none if one of them is refused."""
        if mm_processor_kwargs:
            raise VLLMValidationError(
                "mm_processor_kwargs: prompts are text or token ids.", parameter="mm_processor_kwargs"
            )
        singles = _as_list(prompts)
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = _one_each("params", sampling_params, len(singles))
        loras = _one_each("lora_request", lora_request, len(singles))
        priorities = _one_each("priority", 0 if priority is None else priority, len(singles))
        ids: list[str] = []
        try:
            for prompt, each, lora, order in zip(singles, params, loras, priorities, strict=True):
                ids.append(self._add_request(prompt, each, lora, order, tokenization_kwargs))
        except BaseException:
            self.llm_engine.abort_request(ids)
            raise
        return ids

    def _add_request(
        self, prompt: Any, params: Any, lora: Any, priority: int, tokenization_kwargs: Mapping[str, Any] | None
    ) -> str:
        if isinstance(params, SamplingParams):
            params = params.clone()
            params.output_kind = RequestOutputKind.FINAL_ONLY
        return self.llm_engine.add_request(
            str(next(self.request_counter)),
            prompt,
            params,
            lora_request=lora,
            tokenization_kwargs=tokenization_kwargs,
            priority=priority,
        )

    def _run(self, ids: list[str], use_tqdm: Progress) -> list[RequestOutput]:
        """Run the engine until these requests are done. Enqueued ones that finish meanwhile keep their results."""
        missing = set(ids)
        try:
            with _ProgressBar(use_tqdm, len(ids)) as bar:
                bar.add(self._results[request_id] for request_id in ids if request_id in self._results)
                missing -= self._results.keys()
                while missing:
                    finished = {output.request_id: output for output in self.llm_engine.step() if output.finished}
                    bar.add(finished[request_id] for request_id in finished.keys() & missing)
                    self._results |= {i: finished[i] for i in finished if i in missing or i in self._enqueued}
                    missing -= finished.keys()
        except BaseException:
            self.llm_engine.abort_request(missing)
            for request_id in ids:
                self._results.pop(request_id, None)
            raise
        return [self._results.pop(request_id) for request_id in ids]

    def _render(
        self,
        messages: Conversation | Sequence[Conversation],
        chat_template: str | None,
        content_format: str,
        **template_options: Any,
    ) -> list[PromptType]:
        if not isinstance(messages, Sequence) or not messages:
            raise VLLMValidationError("messages must be a conversation, or a list of them.", parameter="messages")
        conversations: Any = [messages] if isinstance(messages[0], Mapping) else messages
        tokenizer = self.get_tokenizer()
        template = tokenizer.get_chat_template(chat_template, template_options.get("tools"))
        if content_format == "auto":
            content_format = detect_content_format(template)
        elif content_format not in ("string", "openai"):
            raise VLLMValidationError(
                f"chat_template_content_format must be auto, string or openai, got {content_format!r}.",
                parameter="chat_template_content_format",
            )
        traits = traits_of(template, content_format, tokenizer.special_tokens_map)  # type: ignore[arg-type]
        if template_options.get("tools") and not traits.tools:
            note("chat", "tools", NOT_SHOWN)
        prompts: list[PromptType] = []
        preparer = self.llm_engine.input_processor.images
        for conversation in conversations:
            images = ImageIntake(preparer.most) if preparer else None
            parsed = fitted(parse_chat_messages(conversation, content_format, images), traits)  # type: ignore[arg-type]
            text = tokenizer.apply_chat_template(parsed, chat_template=template, tokenize=False, **template_options)
            if preparer and images and images.images:
                ids, prepared = preparer.prepare(text, images.images, False, "messages")
                prompts.append({"prompt": text, "prompt_token_ids": ids, "multi_modal_data": prepared})
                continue
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return prompts


def _continued(prompt: Any, token_ids: list[int]) -> PromptType:
    """A prompt that goes on, as its tokens. KV of salted prompts is shared under their salt alone."""
    salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
    continued = TokensPrompt(prompt_token_ids=token_ids)
    if salt is not None:
        continued["cache_salt"] = salt
    return continued


def _as_list(prompts: Any) -> list[Any]:
    """One prompt or several, as a list of them."""
    if prompts is None:
        raise VLLMValidationError("there is no prompt.", parameter="prompts")
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    several = list(prompts)
    return [several] if several and isinstance(several[0], int) else several


def _one_each(name: str, given: Any, count: int) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        return [given] * count
    if len(given) != count:
        raise VLLMValidationError(
            f"The lengths of prompts ({count}) and {name} ({len(given)}) must be the same.", parameter=name
        )
    return list(given)


def _pooling_error(method: str, kind: str) -> ValueError:
    return ValueError(
        f"LLM.{method}() is only supported for {kind} models; this model generates text (runner='generate'), and no "
        "other runner is served"
    )


def _tqdm(**options: Any) -> Any:
    """tqdm's bar; imported with the first, since that takes longer than a start should."""
    from tqdm.auto import tqdm

    return tqdm(**options)


class _ProgressBar:
    """Prompts done, and tokens in and out a second."""

    def __init__(self, use_tqdm: Progress, total: int) -> None:
        make = _tqdm if use_tqdm is True else use_tqdm
        self._bar = make(total=total, desc="Processed prompts", dynamic_ncols=True) if callable(make) else None
        self._started = time.monotonic()
        self._num_in = self._num_out = 0

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, outputs: Iterable[RequestOutput]) -> None:
        for output in outputs:
            for completion in output.outputs:
                if completion.finish_reason == "error":
                    logger.error("request %s failed: %s", output.request_id, completion.stop_reason)
            if self._bar is not None:
                self._show(output)

    def _show(self, output: RequestOutput) -> None:
        self._num_in += len(output.prompt_token_ids or ())
        self._num_out += sum(len(completion.token_ids) for completion in output.outputs)
        seconds = max(time.monotonic() - self._started, 1e-6)
        speed = f"input: {self._num_in / seconds:.2f} tokens/s, output: {self._num_out / seconds:.2f} tokens/s"
        self._bar.set_postfix_str(speed, refresh=False)  # type: ignore[union-attr]
        self._bar.update(1)  # type: ignore[union-attr]
