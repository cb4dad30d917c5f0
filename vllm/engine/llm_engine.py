"""The engine in the caller's process, driven step by step: what `LLM` is built on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.core.outputs import EngineCoreOutput
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.frontend import (
    Frontend,
    fixed_adapters,
    load_config_tokenizer,
    refuse_resetting_running,
    refuse_stat_loggers,
    refuse_tracing,
    without_stats,
)
from vllm.engine.messages import StepOutput
from vllm.engine.processes.core_client import InprocClient
from vllm.exceptions import VLLMClientError
from vllm.inputs import PromptType
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext


class LLMEngine(Frontend):
    """Requests in, `RequestOutput`s out, one step at a time. Not thread-safe."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """`vllm_config` is resolved, as `EngineArgs.create_engine_config` gives it."""
        if vllm_config.observability_config.otlp_traces_endpoint:
            raise VLLMClientError("otlp_traces_endpoint: requests are traced by servers (AsyncLLM), not offline")
        tokenizer = load_config_tokenizer(vllm_config)
        self.engine_core = InprocClient(vllm_config)
        super().__init__(vllm_config, self.engine_core, tokenizer)
        self._closed = False

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: None = None,
        enable_multiprocessing: bool = False,
    ) -> LLMEngine:
        """stat_loggers: none can be added. enable_multiprocessing: the engine runs in this process."""
        return cls.from_vllm_config(engine_args.create_engine_config(), usage_context, stat_loggers)

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: VllmConfig,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: None = None,
        disable_log_stats: bool = False,
    ) -> LLMEngine:
        """disable_log_stats: as in the config, for callers that say it here."""
        refuse_stat_loggers(stat_loggers)
        return cls(without_stats(vllm_config) if disable_log_stats else vllm_config)

    def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> str:
        """Queue a request. Raises VLLMValidationError for one that cannot be run."""
        refuse_tracing(trace_headers)
        request = self.input_processor.process(
            request_id,
            prompt,
            params,
            arrival_time=arrival_time,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            priority=priority,
            prompt_text=prompt_text,
        )
        self.grammars.attach(request, self.grammars.check(params))
        self.output_processor.add(request)
        self._submit(request.core_requests, params.n)
        return request_id

    def step(self) -> list[RequestOutput]:
        """Run one step; the progress and results it brought. Raises if the device is lost."""
        step = self.engine_core.step()
        processed = self.output_processor.process(step.outputs)
        if processed.abort_ids:
            self.engine_core.abort(processed.abort_ids)
        self.metrics.record_step(step)
        if self.log_stats:
            self.metrics.log()
        return processed.request_outputs

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests; unknown ids are no fault. Nothing more comes of them."""
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        self._abort(self.output_processor.abort(ids))

    def abort_all(self) -> None:
        """End every request, and let the device free their rows."""
        self._abort(self.output_processor.abort_all())
        self.engine_core.settle()

    def _abort(self, core_ids: list[str]) -> None:
        self.engine_core.abort(core_ids)
        ends = [EngineCoreOutput(core_id, [], finish_reason="abort") for core_id in core_ids]
        self.metrics.record_step(StepOutput(ends))

    def has_unfinished_requests(self) -> bool:
        return self.output_processor.num_unfinished > 0

    def get_num_unfinished_requests(self) -> int:
        return self.output_processor.num_unfinished

    def get_model_config(self) -> ModelConfig:
        return self.model_config

    def get_vllm_config(self) -> VllmConfig:
        return self.vllm_config

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def executor_stats(self) -> dict[str, Any]:
        """Start-up seconds by phase, artifact and whether it was found, bytes by kind, padding by bucket."""
        stats: dict[str, Any] = self.engine_core.call("executor_stats")
        return stats

    def do_log_stats(self) -> None:
        self.metrics.log()

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget cached prefixes; with `reset_connector` those in the KV store too."""
        refuse_resetting_running(reset_running_requests)
        return bool(self.engine_core.call("reset_prefix_cache", reset_connector))

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """True for an adapter that was named at start. Raises VLLMValidationError for any other."""
        return self.input_processor.lora_id(lora_request) in self.input_processor.lora_ids

    def remove_lora(self, lora_id: int) -> bool:
        raise fixed_adapters()

    def list_loras(self) -> set[int]:
        return self.input_processor.lora_ids

    def pin_lora(self, lora_id: int) -> bool:
        raise fixed_adapters()

    def shutdown(self) -> None:
        """Release the device. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self.grammars.close()
            self.engine_core.shutdown()
