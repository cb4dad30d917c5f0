"""Checks over several keys of a `NeuronConfig`: everything that would fail, or go wrong unseen, in NxD Inference.

Each function looks at one subject and adds faults; none stops at the first. Values are of their types already.
"""

from __future__ import annotations

from typing import Any

from vllm.settings.buckets import ladder_fault
from vllm.settings.faults import NOTHING, Faults
from vllm.settings.neuron_config_keys import ModelKeys

ADVICE = {
    "on_device_sampling": ("NxD Inference no longer has it", "Use on_device_sampling_config"),
    "lora_serving_config": ("unknown key", "Use 'lora_config'"),
    "fused_spec_config": ("it is built from speculative_config", "Use speculative_config"),
    "num_batched_tokens_buckets": ("a key of another backend", "Use 'context_encoding_buckets'"),
    "decode_context_length_buckets": ("a key of another backend", "Use 'token_generation_buckets'"),
    "num_seqs_buckets": ("a key of another backend", "Use 'token_generation_batches'"),
    "kv_segment_size_buckets": ("a key of another backend", "Use 'prefix_buckets'"),
}


def check(config: ModelKeys, faults: Faults) -> None:
    for subject in (
        _check_shapes,
        _check_types,
        _check_buckets,
        _check_bucket_users,
        _check_batches,
        _check_block_kv,
        _check_cache_layout,
        _check_quantization,
        _check_speculation,
        _check_degrees,
        _check_sequence_parallel,
        _check_kernels,
        _check_sampling,
    ):
        subject(config, faults)


class _Subject:
    """Adds faults about keys of one config, showing their values."""

    def __init__(self, config: ModelKeys, faults: Faults) -> None:
        self.config = config
        self.faults = faults

    def require(self, holds: bool, name: str, why: str, fix: str, *involves: str) -> None:
        if not holds:
            given: Any = getattr(self.config, name, NOTHING)
            self.faults.add(name, given, why, fix, involves)

    def needs(self, name: str, needed: str, why: str = "") -> None:
        """Where `name` is set, `needed` must be too."""
        if getattr(self.config, name):
            holds = bool(getattr(self.config, needed))
            self.require(holds, name, why or f"it needs {needed}", f"Set {needed}, or leave {name} out", needed)

    def excludes(self, name: str, *others: str) -> None:
        """Where `name` is set, none of `others` may be."""
        for other in others:
            if getattr(self.config, name) and getattr(self.config, other):
                self.faults.add(
                    name, getattr(self.config, name), f"cannot be combined with {other}", "Drop one", [other]
                )


def _check_shapes(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    subject.require(
        config.max_context_length <= config.max_length,
        "max_context_length",
        f"a prompt cannot be longer than max_length={config.max_length}",
        f"Use at most {config.max_length}",
        "max_length",
        "seq_len",
    )
    subject.require(
        config.max_length == config.seq_len,
        "max_length",
        f"differs from seq_len={config.seq_len}: one is the length of a KV line, the other the longest sequence",
        "Set both to max_model_len, or neither",
        "seq_len",
    )
    subject.require(
        not config.allow_input_truncation,
        "allow_input_truncation",
        "would cut long prompts in silence",
        "Leave it out: prompts that are too long are refused",
    )
    subject.require(
        config.pa_block_size <= config.seq_len,
        "pa_block_size",
        f"a KV block cannot be longer than a sequence, seq_len={config.seq_len}",
        f"Use at most {config.seq_len}",
        "seq_len",
    )


def _check_types(config: ModelKeys, faults: Faults) -> None:
    _Subject(config, faults).require(
        config.attention_dtype in (None, config.torch_dtype) or config.cast_type == "as-declared",
        "attention_dtype",
        f"differs from torch_dtype={config.torch_dtype!r}, which cast_type='config' casts everything to",
        'Set cast_type to "as-declared"',
        "torch_dtype",
        "cast_type",
    )


def _check_buckets(config: ModelKeys, faults: Faults) -> None:
    for name, maximum, bound in (
        ("context_encoding_buckets", config.max_context_length, "max_context_length"),
        ("token_generation_buckets", config.max_length, "max_length"),
        ("prefix_buckets", config.max_context_length, "max_context_length"),
    ):
        user = getattr(config, name)
        fault = None if user is None else ladder_fault(user, maximum)
        if fault:
            why, mended = fault
            faults.add(name, user, why, f"For example {mended}", involves=[bound, "seq_len"])


def _check_bucket_users(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    for name in ("context_encoding_buckets", "token_generation_buckets", "prefix_buckets", "token_generation_batches"):
        subject.needs(name, "enable_bucketing", "it has no effect with enable_bucketing=False")
    subject.needs("prefix_buckets", "is_prefix_caching", "it has no effect without prefix caching")
    if config.is_prefix_caching:
        for name in ("prefix_buckets", "context_encoding_buckets"):
            uneven = [bucket for bucket in getattr(config, name) or [] if bucket % config.pa_block_size]
            fix = f"Use multiples of {config.pa_block_size}"
            why = f"{uneven} are no multiples of pa_block_size={config.pa_block_size}"
            subject.require(not uneven, name, why, fix, "pa_block_size", "seq_len")


def _check_batches(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    for name in ("tkg_batch_size", "max_batch_size", "spec_batch_size"):
        why = f"differs from batch_size={config.batch_size}, the rows that run at once"
        subject.require(getattr(config, name) == config.batch_size, name, why, "Leave it out", "batch_size")
    subject.require(
        config.ctx_batch_size <= config.batch_size,
        "ctx_batch_size",
        f"more prompts in a step than the batch_size={config.batch_size} rows that can hold them",
        f"Use at most {config.batch_size}",
        "batch_size",
    )
    subject.require(
        config.is_continuous_batching or config.batch_size == 1,
        "is_continuous_batching",
        f"the engine starts and ends the batch_size={config.batch_size} rows one by one",
        "Set it to true, or leave it out",
        "batch_size",
    )
    if config.token_generation_batches is not None:
        why, fix = f"a batch larger than tkg_batch_size={config.tkg_batch_size}", f"Use at most {config.tkg_batch_size}"
        holds = bool(config.token_generation_batches) and max(config.token_generation_batches) <= config.tkg_batch_size
        subject.require(holds, "token_generation_batches", why, fix, "tkg_batch_size", "batch_size")
    subject.excludes(
        "token_generation_batches",
        "speculation_length",
        "enable_fused_speculation",
        "is_medusa",
        "token_tree_config",
        "chunked_prefill_config",
        "is_prefix_caching",
        "is_block_kv_layout",
    )


def _check_block_kv(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    subject.needs("is_prefix_caching", "is_block_kv_layout")
    subject.needs("chunked_prefill_config", "is_block_kv_layout")
    if not config.is_block_kv_layout:
        return
    subject.require(
        config.is_prefix_caching or config.chunked_prefill_config is not None,
        "is_block_kv_layout",
        "nothing reads a block KV cache without prefix caching or chunked prefill",
        "Set is_prefix_caching or chunked_prefill_config, or leave it out",
    )
    blocks = -(-config.seq_len // config.pa_block_size) * config.batch_size
    subject.require(
        config.pa_num_blocks >= blocks,
        "pa_num_blocks",
        f"{config.batch_size} sequences of {config.seq_len} tokens need {blocks} blocks of {config.pa_block_size}",
        f"Use {blocks} or more",
        "pa_block_size",
        "seq_len",
        "batch_size",
    )
    if config.chunked_prefill_config is not None:
        subject.require(
            config.chunked_prefill_config.tkg_model_enabled or config.batch_size == 1,
            "chunked_prefill_config",
            "without a token generation program all sequences are one row",
            "Set tkg_model_enabled, or batch_size to 1",
            "batch_size",
        )


def _check_cache_layout(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    subject.excludes("k_cache_transposed", "flash_decoding_enabled", "chunked_prefill_config", "is_block_kv_layout")
    subject.excludes("attn_block_tkg_nki_kernel_enabled", "flash_decoding_enabled", "chunked_prefill_config")
    subject.excludes("kv_cache_quant", "kv_quant_config")


def _check_quantization(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    for name in ("quantized_checkpoints_path", "modules_to_not_convert", "draft_model_modules_to_not_convert"):
        subject.needs(name, "quantized", "it has no effect with quantized=False")
    if config.quantized and config.quantization_dtype in ("int8", "f8e4m3", "f8e5m2"):
        blockwise = config.quantization_type == "blockwise_symmetric"
        why = "blockwise scales need the block's shape"
        subject.require(
            not blockwise or config.quantization_block_size is not None,
            "quantization_type",
            why,
            "Set quantization_block_size",
        )
    if config.quantized and (config.qkv_kernel_enabled or config.qkv_nki_kernel_enabled):
        why = "a quantised model with a QKV kernel needs the list of modules that stay unquantised"
        subject.require(
            bool(config.modules_to_not_convert), "modules_to_not_convert", why, "Give the list, or drop the kernel"
        )
    subject.needs("rmsnorm_quantize_kernel_enabled", "quantized_mlp_kernel_enabled")
    subject.excludes("activation_quantization_type", "quantized_mlp_kernel_enabled", "mlp_kernel_enabled")
    if config.is_full_model_shuffled:
        holds = config.is_mxfp4_compute or config.is_eagle_draft
        subject.require(holds, "is_full_model_shuffled", "it belongs to mxfp4", "Set is_mxfp4_compute")


def _check_speculation(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    subject.needs("enable_fused_speculation", "speculation_length")
    for name in ("is_eagle3", "enable_eagle_draft_input_norm", "token_tree_config"):
        subject.needs(name, "enable_eagle_speculation")
    subject.excludes("is_eagle3", "token_tree_config")
    for name in ("speculation_length", "is_medusa"):
        subject.needs(name, "on_device_sampling_config", "the device must sample to check drafts")
    subject.needs("is_medusa", "medusa_speculation_length")
    subject.needs("is_medusa", "num_medusa_heads")
    subject.excludes("is_medusa", "async_mode", "speculation_length")
    subject.require(
        config.speculation_length < config.seq_len,
        "speculation_length",
        f"longer than a sequence, seq_len={config.seq_len}",
        "Use 3 to 7",
        "seq_len",
    )


def _check_degrees(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    for name in ("cp_degree", "attention_dp_degree"):
        why = f"must divide tp_degree={config.tp_degree}"
        subject.require(config.tp_degree % getattr(config, name) == 0, name, why, "Use a divisor", "tp_degree")
    if config.mlp_cp_degree > 1:
        subject.needs("mlp_cp_degree", "sequence_parallel_enabled")
    if config.attention_dp_degree > 1:
        _check_attention_data_parallel(config, subject)
    subject.require(
        not config.strided_context_parallel_kernel_enabled or config.cp_degree > 1,
        "strided_context_parallel_kernel_enabled",
        "it needs cp_degree above 1",
        "Set cp_degree, or leave it out",
        "cp_degree",
    )
    subject.require(
        config.ep_dispatch_cc_option != "RS_AG" or config.tp_degree <= config.tkg_batch_size,
        "ep_dispatch_cc_option",
        f"needs tp_degree={config.tp_degree} to be at most tkg_batch_size={config.tkg_batch_size}",
        "Use AR_AG",
        "tp_degree",
        "tkg_batch_size",
    )
    ranks = config.tp_degree * config.pp_degree * config.ep_degree
    subject.require(
        config.world_size % ranks == 0,
        "world_size",
        f"must be a multiple of tp_degree * pp_degree * ep_degree = {ranks}",
        "Leave it out",
        "tp_degree",
        "pp_degree",
        "ep_degree",
    )
    subject.require(
        config.start_rank_id + config.local_ranks_size <= config.world_size,
        "local_ranks_size",
        f"ranks {config.start_rank_id} and up go beyond world_size={config.world_size}",
        f"Use at most {config.world_size - config.start_rank_id}",
        "start_rank_id",
        "world_size",
    )


def _check_attention_data_parallel(config: ModelKeys, subject: _Subject) -> None:
    degree, cp = config.attention_dp_degree, config.cp_degree
    name = "attention_dp_degree"
    why = f"must divide tkg_batch_size={config.tkg_batch_size}"
    subject.require(config.tkg_batch_size % degree == 0, name, why, "Use a divisor", "tkg_batch_size")
    subject.require(
        config.is_continuous_batching, name, "needs is_continuous_batching", "Set it", "is_continuous_batching"
    )
    why = f"with cp_degree={cp} it must divide cp_degree"
    subject.require(cp == 1 or cp % degree == 0, name, why, "Use a divisor of cp_degree, or cp_degree=1", "cp_degree")


def _check_sequence_parallel(config: ModelKeys, faults: Faults) -> None:
    if not config.sequence_parallel_enabled:
        return
    lengths = [config.max_context_length]
    if config.enable_bucketing:
        lengths = [*(config.context_encoding_buckets or []), config.max_context_length]
    uneven = sorted({length for length in lengths if length % config.tp_degree})
    _Subject(config, faults).require(
        not uneven,
        "sequence_parallel_enabled",
        f"context lengths {uneven} are not divisible by tp_degree={config.tp_degree}",
        f"Use lengths that are multiples of {config.tp_degree}, or leave it out",
        "tp_degree",
        "context_encoding_buckets",
        "max_context_length",
        "seq_len",
    )


def _check_kernels(config: ModelKeys, faults: Faults) -> None:
    subject = _Subject(config, faults)
    subject.needs("qkv_cte_nki_kernel_fuse_rope", "qkv_kernel_enabled")
    subject.needs("qkv_cte_nki_kernel_fuse_rope", "qkv_nki_kernel_enabled")
    for name in ("attn_block_tkg_nki_kernel_cache_update", "attn_block_tkg_nki_kernel_cascaded_attention"):
        subject.needs(name, "attn_block_tkg_nki_kernel_enabled")
    if config.attn_block_tkg_nki_kernel_enabled:
        subject.require(
            config.qkv_kernel_enabled or config.qkv_nki_kernel_enabled,
            "attn_block_tkg_nki_kernel_enabled",
            "it needs a QKV kernel",
            "Set qkv_kernel_enabled or qkv_nki_kernel_enabled",
        )
    for needed in ("qkv_kernel_enabled", "qkv_nki_kernel_enabled", "attn_kernel_enabled", "out_proj_kernel_enabled"):
        subject.needs("attn_block_cte_nki_kernel_enabled", needed)


def _check_sampling(config: ModelKeys, faults: Faults) -> None:
    sampling = config.on_device_sampling_config
    if sampling is None:
        return
    subject = _Subject(config, faults)
    subject.require(
        config.batch_size % sampling.sampling_dp_degree == 0,
        "on_device_sampling_config.sampling_dp_degree",
        f"{sampling.sampling_dp_degree} does not divide batch_size={config.batch_size}",
        "Use a divisor",
        "batch_size",
    )
