"""Options of vLLM that mean nothing here, or cannot be had: known by name, so that they are never ignored in silence.

A value that asks for nothing (`neutral`) passes. Any other is either noted in the log with the reason why it has no
effect, or refused.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """default: what the option has when it is not given. reason: why it has no effect, or why it is refused.

    neutral: further values that ask for nothing. type: of its value on the command line; bool makes a flag, list takes
    several words, dict is a mapping. hf_override: it is an entry of the model's config.json under the same name, and
    has its effect as that.
    """

    default: Any
    reason: str
    refused: bool = False
    neutral: tuple[Any, ...] = ()
    type: type = str
    hf_override: bool = False

    def asks_for_nothing(self, value: Any) -> bool:
        return value is None or any(value == each for each in (self.default, *self.neutral))

    @property
    def argument(self) -> dict[str, Any]:
        """What argparse is told of it."""
        if self.type is bool:
            return {"action": argparse.BooleanOptionalAction}
        return {"type": str, "nargs": "+"} if self.type is list else {"type": str if self.type is dict else self.type}


def _no_effect(default: Any, reason: str, type: type = str) -> ForeignOption:
    return ForeignOption(default, reason, type=type)


def _refused(default: Any, reason: str, neutral: tuple[Any, ...] = (), type: type = str) -> ForeignOption:
    return ForeignOption(default, reason, refused=True, neutral=neutral, type=type)


def without_effect(reason: str, **defaults: Any) -> dict[str, ForeignOption]:
    """Options with one reason in common; the type of each follows from its default."""
    return {name: _no_effect(default, reason, _type_of(default)) for name, default in defaults.items()}


def refused(reason: str, **defaults: Any) -> dict[str, ForeignOption]:
    return {name: _refused(default, reason, type=_type_of(default)) for name, default in defaults.items()}


_SHORT = {
    "attention_config": "-ac", "compilation_config": "-cc", "data_parallel_address": "-dpa",
    "data_parallel_backend": "-dpb", "data_parallel_external_lb": "-dpe", "data_parallel_hybrid_lb": "-dph",
    "data_parallel_multi_port_external_lb": "-dpm", "data_parallel_rank": "-dpn", "data_parallel_rpc_port": "-dpp",
    "data_parallel_size_local": "-dpl", "data_parallel_start_rank": "-dpr", "decode_context_parallel_size": "-dcp",
    "diffusion_config": "-dc", "enable_expert_parallel": "-ep", "nnodes": "-n", "node_rank": "-r",
    "prefill_context_parallel_size": "-pcp",
}  # fmt: skip
"""The short names that vLLM's command line has for some of them."""


def words_of(name: str) -> list[str]:
    """What the command line calls an option of these."""
    return [f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])]


def _type_of(default: Any) -> type:
    return str if default is None else type(default)


_TEXT_ONLY = "prompts are text or token ids"
_NOTHING_FETCHED = "images come as data: URLs, and nothing is read or fetched for a request"
_GENERATORS = "only text generators are served"
_ONE_REPLICA = "an engine is one replica on one host; run more servers behind a load balancer"
_ONE_LAYOUT = "a model is split by tensor_parallel_size alone"
_NO_EXPERTS = "it concerns mixtures of experts"
_NO_RECURRENCE = "it concerns layers with a recurrent state or kernels for GPUs"
_COMPILED = "programs are compiled ahead of time, for the target's own kernels"
_ONE_ATTENTION = "a target has one implementation of attention"
_NEVER_EVICTED = "a running sequence is never evicted"

FOREIGN_OPTIONS: dict[str, ForeignOption] = {
    "task": _refused("auto", _GENERATORS, ("generate",)),
    "runner": _refused("auto", _GENERATORS, ("generate",)),
    "convert": _refused("auto", _GENERATORS, ("none",)),
    "pooler_config": _refused(None, _GENERATORS),
    "config_format": _refused("auto", "a checkpoint has config.json or is a GGUF file", ("hf",)),
    "model_impl": _refused("auto", "models are compiled from their own graphs", ("vllm",)),
    "code_revision": _refused(None, "code that comes with a checkpoint is never run"),
    "rope_scaling": ForeignOption(None, 'The same as hf_overrides={"rope_scaling": ...}', type=dict, hf_override=True),
    "rope_theta": ForeignOption(None, 'The same as hf_overrides={"rope_theta": ...}', type=float, hf_override=True),
    "disable_sliding_window": _refused(False, 'use hf_overrides={"sliding_window": null}', type=bool),
    "quantization_config": _refused(None, "use override_neuron_config and its `quantized` keys"),
    "model_loader_extra_config": _refused({}, "there is one loader", ("{}",)),
    "cpu_offload_gb": _refused(0, "weights stay on the device", type=float),
    "offload_group_size": _refused(0, "weights stay on the device", type=int),
    "offload_num_in_group": _refused(1, "weights stay on the device", type=int),
    "offload_prefetch_step": _refused(1, "weights stay on the device", type=int),
    "offload_params": _refused(None, "weights stay on the device", ([], set()), type=list),
    "enable_sleep_mode": _refused(False, "the model stays on the device", type=bool),
    "enable_expert_parallel": _refused(False, "mixture-of-experts models are not served yet", type=bool),
    "logits_processors": _refused(
        None, "sampling runs on the device; use logit_bias or allowed_token_ids", ([],), type=list
    ),
    "profiler_config": _refused(None, "there is no profiler"),
    "collect_detailed_traces": _refused(
        None, "a trace has one span for each request; see otlp_traces_endpoint", type=list
    ),
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
    "attention_config": _no_effect(None, _ONE_ATTENTION),
    "attention_backend": _no_effect(None, _ONE_ATTENTION),
    "disable_cascade_attn": _no_effect(None, _ONE_ATTENTION, type=bool),
    "disable_custom_all_reduce": _no_effect(False, "collectives are part of the compiled programs", type=bool),
    "max_parallel_loading_workers": _no_effect(None, "weights are mapped, not loaded", type=int),
    "use_tqdm_on_load": _no_effect(True, "weights are mapped, not loaded", type=bool),
    "ignore_patterns": _no_effect(["original/**/*"], "only the files that are needed are downloaded", type=list),
    "disable_async_output_proc": _no_effect(False, "outputs are processed beside the engine anyway", type=bool),
    "tokenizer_pool_size": _no_effect(0, "the tokenizer runs in the front", type=int),
    "lora_dtype": _no_effect("auto", "adapters have the dtype of the model"),
    "mm_processor_kwargs": _no_effect(None, "images are prepared as the checkpoint's processor says"),
    "allowed_local_media_path": _no_effect("", _NOTHING_FETCHED),
    "allowed_media_domains": _no_effect(None, _NOTHING_FETCHED, type=list),
    "show_hidden_metrics_for_version": _no_effect(None, "no metric is hidden"),
    "disable_log_requests": _no_effect(False, "requests are logged only with enable_log_requests", type=bool),
    **without_effect(
        _ONE_REPLICA, data_parallel_address=None, data_parallel_rpc_port=0, data_parallel_backend="mp",
        data_parallel_rank=0, data_parallel_start_rank=0, data_parallel_size_local=1, data_parallel_hybrid_lb=False,
        data_parallel_external_lb=False, data_parallel_multi_port_external_lb=False, dp_sync_interval=16,
        disable_nccl_for_dp_synchronization=None, enable_nccl_comm_suspend=False, distributed_timeout_seconds=0,
        cpu_distributed_timeout_seconds=0, ray_workers_use_nsight=False, enable_dbo=False, ubatch_size=0,
        dbo_decode_token_threshold=32, dbo_prefill_token_threshold=512, master_addr="127.0.0.1", master_port=29501,
        enable_fault_tolerance=False, fault_tolerance_config=None,
    ),
    **refused(_ONE_REPLICA, nnodes=1, node_rank=0, enable_elastic_ep=False, elastic_ep_max_dp_size=0),
    **without_effect(
        _ONE_LAYOUT, decode_context_parallel_size=1, prefill_context_parallel_size=1, dcp_comm_backend=None,
        dcp_kv_cache_interleave_size=1, cp_kv_cache_interleave_size=1, dcp_q_replicate=None,
        enable_batch_sharded_sampling=None, enable_hc_sp=False, numa_bind=False, numa_bind_nodes=[], numa_bind_cpus=[],
    ),
    **without_effect(
        _NO_EXPERTS, all2all_backend="allgather_reducescatter", enable_eplb=False, eplb_config=None,
        enable_ep_weight_filter=False, expert_placement_strategy="linear", moe_backend="auto",
        enable_moe_shared_loras=False, enable_mixed_moe_lora_format=False,
    ),
    **without_effect(
        _NO_RECURRENCE, mamba_backend="TRITON", mamba_block_size=0, mamba_cache_dtype="auto", mamba_cache_mode="none",
        mamba_cache_philox_rounds=0, mamba_config=None, mamba_ssm_cache_dtype="auto", mamba_ssu_algorithm=None,
        enable_mamba_cache_stochastic_rounding=False, enable_mamba_shared_prefix_checkpoint=False,
        use_replayssm=False, replayssm_buffer_len=16, gdn_prefill_backend=None, kda_prefill_backend=None,
        kda_decode_backend=None, disable_hybrid_kv_cache_manager=None, swa_bounded_replay=True,
    ),
    **without_effect(
        _COMPILED, cudagraph_capture_sizes=[], max_cudagraph_capture_size=0, cudagraph_metrics=False,
        enable_layerwise_nvtx_tracing=False, enable_flashinfer_autotune=None, enable_trace_replay=False,
        ir_op_priority=None, jit_monitor_mode="warn", jit_monitor_verbose=False, kernel_config=None,
        linear_backend="auto", optimization_level="2", performance_mode="balanced", sparse_indexer_topk_backend="auto",
        use_fp64_gumbel=False, kv_sharing_fast_prefill=False, device_ids=[], enable_cumem_allocator=False,
        sleep_mode_offload_cudagraph=False, sleep_preserve_parameter_names=[], enable_shm_tensor_arena=False,
        allow_deprecated_quantization=False, fail_on_environ_validation=False,
    ),
    **without_effect(
        "weights are mapped, not loaded", pt_load_map_location=None, safetensors_load_strategy=None,
        safetensors_prefetch_block_size=1 << 24, safetensors_prefetch_num_threads=8,
    ),
    **without_effect(
        "the scheduler admits a request only when its whole future fits", long_prefill_token_threshold=0,
        long_prefill_token_threshold_adaptive=False, max_num_active_seqs=0, max_num_scheduled_tokens=0,
        prefill_schedule_interval=1, scheduler_reserve_full_isl=True, watermark=0.0, prefix_match_unit=0,
        prefix_cache_retention_interval=0,
    ),
    **without_effect(
        "images are prepared in one place, as the checkpoint's processor says", disable_chunked_mm_input=False,
        enable_mm_processor_stats=False, interleave_mm_strings=False, language_model_only=False,
        mm_device_do_normalize=True, mm_encoder_attn_backend=None, mm_encoder_attn_dtype=None,
        mm_encoder_fp8_scale_path=None, mm_encoder_fp8_scale_save_margin=1.5, mm_encoder_fp8_scale_save_path=None,
        mm_encoder_tp_mode="weights", mm_hasher_algorithm="blake3", mm_ipc_gpu_memory_gb=0.0,
        mm_processor_cache_gb=4.0, mm_processor_cache_type="lru", mm_processor_device="auto",
        mm_shm_cache_max_object_size_mb=128, mm_tensor_ipc="direct_rpc", renderer_num_workers=1,
        skip_mm_profiling=False, video_pruning_method="evs", video_pruning_rate=0.0,
    ),
    **without_effect(
        "adapters are laid out when the model is loaded", enable_tower_connector_lora=False, fully_sharded_loras=False,
        max_lora_cls_labels=0, specialize_active_lora=False,
    ),
    **without_effect(
        "metrics have one set of buckets, and the log one form; VLLM_LOGGING_LEVEL sets its level",
        aggregate_engine_logging=False, custom_histogram_buckets=None, enable_logging_iteration_details=False,
        enable_mfu_metrics=False, kv_cache_metrics=False, kv_cache_metrics_sample=0.01, log_level=None,
        log_config_file=None, logging_config=None,
    ),
    **refused(
        "caches and weights are not handed to other processes", ec_manager_config=None, ec_transfer_config=None,
        kv_events_config=None, weight_transfer_config=None,
    ),
    **refused(_TEXT_ONLY, enable_mm_embeds=False, enable_prompt_embeds=False, mm_encoder_only=False, tokens_only=False),
    **refused("images come as data: URLs and are prepared as the checkpoint says", media_io_kwargs=None),
    **refused("it is not served", aux_output_config=None, diffusion_config=None, engram_config=None,
              io_processor_plugin=None, per_request_spec_decode_metrics="none", reasoning_config=None,
              watermark_config=None),
    **refused("weights stay on the device", cpu_offload_params=[], offload_backend="auto"),
    **refused("a checkpoint holds its own config and weights", hf_config_path=None, model_weights="",
              model_class_overrides=None),
    **refused("the cache of every layer has one type", kv_cache_dtype_skip_layers=[]),
    **refused("an adapter applies to all the modules that it has", lora_target_modules=[]),
    **refused("adapters are asked for by name", default_mm_loras=None),
    **refused("there is one scheduler", scheduler_cls=None),
}  # fmt: skip
"""By the name of the option. On the command line each has the same name, with dashes."""
