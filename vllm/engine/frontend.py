"""The half of an engine that concerns text: what `LLMEngine` and `AsyncLLM` have in common.

Tokenizer, requests in, outputs out, grammars and metrics, over a core that may be in this process or elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from vllm.config import ModelConfig, VllmConfig
from vllm.core.contract import Capabilities
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.observe.metrics import EngineMetrics, SharedTally
from vllm.engine.place import Place
from vllm.engine.structured_outputs.defaults import OutputDefaults
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.engine.text.grammar_preparer import GrammarPreparer
from vllm.engine.text.images import ImagePreparer
from vllm.engine.text.input_processor import InputProcessor
from vllm.engine.text.output_processor import OutputProcessor
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams


class Core(Protocol):
    """What a front end asks of a core, wherever that runs."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def executor_stats(self) -> dict[str, Any]: ...

    def add_request(self, request: EngineCoreRequest) -> None: ...

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None: ...


class Frontend:
    """What is known of a model and its requests on the host's side. Owned by one thread or event loop."""

    def __init__(
        self,
        config: VllmConfig,
        core: Core,
        tokenizer: Tokenizer | None,
        *,
        place: Place | None = None,
        startup: Mapping[str, Any] | None = None,
        tally: SharedTally | None = None,
    ) -> None:
        """config: resolved. place: among several front ends of one core. startup: joins the core's figures."""
        self.vllm_config = config
        self.tokenizer = tokenizer
        self.log_stats = not config.observability_config.disable_log_stats
        self.input_processor = InputProcessor(config, core.capabilities, tokenizer, place)
        self.output_processor = OutputProcessor(
            tokenizer, with_metrics=self.log_stats, stream_interval=config.scheduler_config.stream_interval
        )
        self.metrics = EngineMetrics(config, {**core.executor_stats, **(startup or {})}, tally=tally)
        self.grammars = GrammarPreparer(
            core.capabilities,
            tokenizer,
            config.model_config.vocab_size,
            self.input_processor.eos_token_ids,
            core.set_grammar_tokenizer,
            OutputDefaults.parse(config.structured_outputs_config),
        )
        self._core = core

    @property
    def model_config(self) -> ModelConfig:
        return self.vllm_config.model_config

    @property
    def capabilities(self) -> Capabilities:
        return self._core.capabilities

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        """The checkpoint's defaults, as fields of `SamplingParams`."""
        return self.input_processor.default_sampling_params

    @property
    def eos_token_ids(self) -> list[int]:
        """What ends an output: the EOS of the tokenizer, of the model's config and of its generation config."""
        return self.input_processor.eos_token_ids

    @property
    def images(self) -> ImagePreparer | None:
        """Prepares the images of prompts; None where the model takes none."""
        return self.input_processor.images

    def check_params(self, params: SamplingParams) -> None:
        """Raises VLLMValidationError for parameters that no prompt can be run with."""
        self.input_processor.check_params(params)

    def get_tokenizer(self) -> Tokenizer:
        """Raises ValueError where there is none."""
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer: the engine was made with skip_tokenizer_init")
        return self.tokenizer

    def get_metrics(self) -> list[Any]:
        """Every metric of this engine, at this moment."""
        return list(self.metrics.snapshot())

    def _submit(self, core_requests: Iterable[EngineCoreRequest], n: int) -> None:
        """Give the core requests that `output_processor` knows, of a user's request with `n` of them."""
        for core_request in core_requests:
            if self.log_stats:
                max_tokens = core_request.max_tokens or 0
                num_prompt_tokens = len(core_request.prompt_token_ids)
                self.metrics.record_arrival(
                    core_request.req_id, core_request.arrival_time, num_prompt_tokens, max_tokens, n
                )
            self._core.add_request(core_request)


def load_config_tokenizer(config: VllmConfig) -> Tokenizer | None:
    """The tokenizer that a config names; None with skip_tokenizer_init."""
    model = config.model_config
    if model.skip_tokenizer_init:
        return None
    return Tokenizer.load(
        model.tokenizer or model.model_path or model.model,
        chat_template=model.chat_template,
        revision=model.tokenizer_revision if model.tokenizer else model.revision,
        download_dir=model.download_dir,
        token=model.hf_token,
    )


def fixed_adapters() -> VLLMClientError:
    return VLLMClientError("LoRA adapters are those named by lora_modules; they stay as long as the engine runs")


def without_stats(config: VllmConfig) -> VllmConfig:
    return config.replace(observability_config=dataclasses.replace(config.observability_config, disable_log_stats=True))


def refuse_stat_loggers(stat_loggers: Any) -> None:
    if stat_loggers:
        raise VLLMClientError("stat_loggers are not supported: read get_metrics() or /metrics")


def refuse_resetting_running(reset_running_requests: bool) -> None:
    if reset_running_requests:
        raise VLLMClientError("reset_running_requests: a running sequence keeps its KV until it ends")


def refuse_tracing(trace_headers: Mapping[str, str] | None) -> None:
    if trace_headers:
        raise VLLMClientError("trace_headers are not supported: requests are not traced")
