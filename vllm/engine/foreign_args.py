"""Options of vLLM that mean nothing here, or cannot be had: known by name, so that they are never ignored in silence.

A value that asks for nothing (`neutral`) passes. Any other is either noted in the log with the reason why it has no
effect, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """default: what the option has when it is not given. reason: why it has no effect, or why it is refused.

    neutral: further values that ask for nothing. type: of its value on the command line; bool makes a flag.
    """

    default: Any
    reason: str
    refused: bool = False
    neutral: tuple[Any, ...] = ()
    type: type = str

    def asks_for_nothing(self, value: Any) -> bool:
        return value is None or any(value == each for each in (self.default, *self.neutral))


def _no_effect(default: Any, reason: str, type: type = str) -> ForeignOption:
    return ForeignOption(default, reason, type=type)


def _refused(default: Any, reason: str, neutral: tuple[Any, ...] = (), type: type = str) -> ForeignOption:
    return ForeignOption(default, reason, refused=True, neutral=neutral, type=type)


_TEXT_ONLY = "prompts are text or token ids"
_NOTHING_FETCHED = "images come as data: URLs, and nothing is read or fetched for a request"
_GENERATORS = "only text generators are served"
_NEVER_EVICTED = "a running sequence is never evicted"

FOREIGN_OPTIONS: dict[str, ForeignOption] = {
    "task": _refused("auto", _GENERATORS, ("generate",)),
    "runner": _refused("auto", _GENERATORS, ("generate",)),
    "convert": _refused("auto", _GENERATORS, ("none",)),
    "pooler_config": _refused(None, _GENERATORS),
    "config_format": _refused("auto", "a checkpoint has config.json or is a GGUF file", ("hf",)),
    "model_impl": _refused("auto", "models are compiled from their own graphs", ("vllm",)),
    "code_revision": _refused(None, "code that comes with a checkpoint is never run"),
    "rope_scaling": _refused(None, 'use hf_overrides={"rope_scaling": {...}}'),
    "rope_theta": _refused(None, 'use hf_overrides={"rope_theta": ...}', type=float),
    "disable_sliding_window": _refused(False, 'use hf_overrides={"sliding_window": null}', type=bool),
    "quantization_config": _refused(None, "use override_neuron_config and its `quantized` keys"),
    "model_loader_extra_config": _refused(None, "there is one loader", ({},)),
    "cpu_offload_gb": _refused(0, "weights stay on the device", type=float),
    "offload_group_size": _refused(0, "weights stay on the device", type=int),
    "offload_num_in_group": _refused(1, "weights stay on the device", type=int),
    "offload_prefetch_step": _refused(1, "weights stay on the device", type=int),
    "offload_params": _refused(None, "weights stay on the device"),
    "enable_sleep_mode": _refused(False, "the model stays on the device", type=bool),
    "enable_expert_parallel": _refused(False, "mixture-of-experts models are not served yet", type=bool),
    "logits_processors": _refused(None, "sampling runs on the device; use logit_bias or allowed_token_ids", ([],)),
    "profiler_config": _refused(None, "there is no profiler"),
    "collect_detailed_traces": _refused(None, "a trace has one span for each request; see otlp_traces_endpoint"),
    "worker_cls": _refused("auto", "there is one worker"),
    "worker_extension_cls": _refused("", "there is one worker"),
    "enable_return_routed_experts": _refused(False, "routed experts are not reported", type=bool),
    "return_sampling_mask": _refused(False, "sampling masks are not reported", type=bool),
    "guided_decoding_backend": _refused("auto", "there is one backend, guidance", ("guidance",)),
    "swap_space": _no_effect(4, f"nothing is swapped out: {_NEVER_EVICTED}", type=float),
    "preemption_mode": _no_effect(None, f"nothing is preempted: {_NEVER_EVICTED}"),
    "num_scheduler_steps": _no_effect(1, "every step is scheduled", type=int),
    "use_v2_block_manager": _no_effect(True, "there is one block pool", type=bool),
    "compilation_config": _no_effect(None, "programs are always compiled; override_neuron_config shapes them"),
    "max_seq_len_to_capture": _no_effect(8192, "programs are compiled for every length by bucket", type=int),
    "attention_config": _no_effect(None, "a target has one implementation of attention"),
    "attention_backend": _no_effect(None, "a target has one implementation of attention"),
    "disable_cascade_attn": _no_effect(False, "a target has one implementation of attention", type=bool),
    "disable_custom_all_reduce": _no_effect(False, "collectives are part of the compiled programs", type=bool),
    "max_parallel_loading_workers": _no_effect(None, "weights are mapped, not loaded", type=int),
    "use_tqdm_on_load": _no_effect(True, "weights are mapped, not loaded", type=bool),
    "ignore_patterns": _no_effect(None, "only the files that are needed are downloaded"),
    "disable_async_output_proc": _no_effect(False, "outputs are processed beside the engine anyway", type=bool),
    "tokenizer_pool_size": _no_effect(0, "the tokenizer runs in the front", type=int),
    "lora_dtype": _no_effect("auto", "adapters have the dtype of the model"),
    "mm_processor_kwargs": _no_effect(None, "images are prepared as the checkpoint's processor says"),
    "allowed_local_media_path": _no_effect("", _NOTHING_FETCHED),
    "allowed_media_domains": _no_effect(None, _NOTHING_FETCHED),
    "show_hidden_metrics_for_version": _no_effect(None, "no metric is hidden"),
    "disable_log_requests": _no_effect(False, "requests are logged only with enable_log_requests", type=bool),
}
"""By the name of the option. On the command line each has the same name, with dashes."""
