"""Every key of NxD Inference's NeuronConfig: name, type, default, range and meaning.

Names and defaults are the library's; some defaults are replaced by vLLM's settings (`neuron_config`). Each class below
is one group of the reference in `docs/neuron_config.md`; together they are `NeuronConfig`. A group is never built by
itself, so it gets no methods of its own: making those of 200 fields anew for each group takes long at every import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.settings.host_platform import platform_name
from vllm.settings.neuron_config_sections import (
    TORCH_DTYPES,
    ChunkedPrefillConfig,
    HybridShardingConfig,
    KVQuantizationConfig,
    LoraServingConfig,
    OnDeviceSamplingConfig,
    TensorCaptureConfig,
    VisionNeuronConfig,
    dtype_name,
)
from vllm.settings.section import Section, derived, key

LONG_CONTEXT = 32768
LONG_CONTEXT_SCRATCHPAD_PAGE_SIZE = 1024


def flag(help: str, default: bool | None = False) -> Any:
    """A switch of the accelerator's programs, without meaning elsewhere."""
    return key(default, help, accelerator_only=True)


def _default_logical_cores() -> int:
    """Physical cores in a logical one: as the environment says, else 2 on trn2 and trn3, else 1."""
    platform_default = 2 if platform_name() in ("trn2", "trn3") else 1
    return int(envs.NEURON_LOGICAL_NC_CONFIG or envs.NEURON_RT_VIRTUAL_CORE_SIZE or platform_default)


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, int) and not isinstance(given, bool) else given


def _in_home(given: Any) -> Any:
    return str(Path(given).expanduser()) if isinstance(given, str) else given


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ShapeKeys(Section):
    """Batch, lengths and types."""

    batch_size: int = key(1, "Rows of the token generation program. From max_num_seqs.", at_least=1)
    ctx_batch_size: int = derived(
        lambda c: c.batch_size, "batch_size", "Prompts in one context encoding step. vLLM: 1.", at_least=1
    )
    tkg_batch_size: int = derived(lambda c: c.batch_size, "batch_size", "Rows of token generation.", at_least=1)
    max_batch_size: int = derived(lambda c: c.batch_size, "batch_size", "Largest batch of any program.", at_least=1)
    spec_batch_size: int = derived(
        lambda c: c.batch_size, "batch_size", "Rows of the verifying program.", at_least=1, accelerator_only=True
    )
    is_continuous_batching: bool = derived(
        lambda c: c.batch_size > 1, "batch_size > 1", "KV lines are chosen by seq_id."
    )
    padding_side: str = key("right", "Side on which prompts are padded; serving needs right.", choices=["right"])
    seq_len: int = key(128, "Longest sequence, prompt and output together. From max_model_len.", at_least=1)
    max_context_length: int = derived(lambda c: c.seq_len, "seq_len", "Longest prompt.", at_least=1)
    max_length: int = derived(lambda c: c.seq_len, "seq_len", "Positions in a KV line.", at_least=1)
    max_new_tokens: int | None = derived(
        lambda c: (c.seq_len - c.max_context_length) or None,
        "seq_len - max_context_length, none if 0",
        "Informational: the length limit of a request is its own.",
        at_least=1,
        accelerator_only=True,
    )
    n_active_tokens: int = derived(
        lambda c: c.seq_len, "seq_len", "Internal to NxD Inference.", at_least=1, accelerator_only=True
    )
    n_positions: int = derived(
        lambda c: c.seq_len, "seq_len", "Internal to NxD Inference.", at_least=1, accelerator_only=True
    )
    torch_dtype: str = key(
        "bfloat16", "Arithmetic and storage type of weights. From dtype.", choices=TORCH_DTYPES, read=dtype_name
    )
    overrides_torch_dtype: bool = key(True, "torch_dtype replaces the checkpoint's own type.", accelerator_only=True)
    cast_type: str = key(
        "config",
        "Cast weights to torch_dtype, or keep their own types.",
        choices=["config", "as-declared"],
        accelerator_only=True,
    )
    attention_dtype: str | None = key(
        None, "Arithmetic type of attention.", choices=TORCH_DTYPES, read=dtype_name, accelerator_only=True
    )
    rpl_reduce_dtype: str | None = key(
        None,
        "Type in which row-parallel results are summed.",
        choices=TORCH_DTYPES,
        read=dtype_name,
        accelerator_only=True,
    )
    allow_input_truncation: bool = key(False, "Cut prompts that are too long, silently. Refused when serving.")
    output_logits: bool = flag("With on-device sampling: return logits too.")
    on_cpu: bool = flag("NxD Inference's own CPU mode.")
    vocab_parallel: bool = flag("Shard the embedding over the vocabulary.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class BucketKeys(ShapeKeys):
    """Buckets."""

    enable_bucketing: bool = key(False, "Compile for several lengths instead of the longest alone. vLLM: true.")
    buckets: list[int] = derived(
        lambda c: [c.seq_len], "[seq_len]", "Internal to NxD Inference.", at_least=1, accelerator_only=True
    )
    context_encoding_buckets: list[int] | None = key(
        None, "Prompt lengths to compile for, ascending, up to max_context_length. None: powers of two from 128."
    )
    token_generation_buckets: list[int] | None = key(
        None, "Context lengths to compile for, ascending, up to max_length. None: powers of two from 128."
    )
    prefix_buckets: list[int] | None = key(
        None, "Cached prefix lengths to compile for under prefix caching. None: powers of two from 512."
    )
    token_generation_batches: list[int] | None = key(
        None, "Batch sizes to compile token generation for.", at_least=1, read=_as_list, accelerator_only=True
    )
    bucket_n_active_tokens: bool = flag("Internal to NxD Inference.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SamplingKeys(BucketKeys):
    """Sampling."""

    on_device_sampling_config: OnDeviceSamplingConfig | None = key(
        None, "On-device sampling; null: logits come back and the host samples. vLLM: dynamic."
    )
    disable_argmax_kernel: bool = flag("Do without the argmax kernel.")
    async_mode: bool = flag("Run one decode step ahead of the host.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class CacheKeys(SamplingKeys):
    """KV cache."""

    kv_cache_batch_size: int = derived(
        lambda c: c.tkg_batch_size // c.attention_dp_degree if c.attention_dp_degree > 1 else c.batch_size,
        "batch_size, or tkg_batch_size / attention_dp_degree",
        "KV lines.",
        at_least=1,
        accelerator_only=True,
    )
    kv_cache_padding_size: int = derived(
        lambda c: int(c.attention_dp_degree > 1),
        "1 with attention data parallelism, else 0",
        "KV lines beyond the batch, for writes to be discarded.",
        at_least=0,
        accelerator_only=True,
    )
    is_block_kv_layout: bool = key(False, "Blocks smaller than a sequence. From prefix caching and chunked prefill.")
    pa_num_blocks: int = derived(
        lambda c: c.batch_size, "batch_size", "Usable KV blocks. From num_gpu_blocks_override.", at_least=1
    )
    pa_block_size: int = derived(lambda c: c.seq_len, "seq_len", "Tokens in a KV block. From block_size.", at_least=1)
    is_prefix_caching: bool = key(False, "Reuse the KV of equal prompt prefixes. From enable_prefix_caching.")
    chunked_prefill_config: ChunkedPrefillConfig | None = key(None, "Chunked prefill. From enable_chunked_prefill.")
    windowed_context_encoding_size: int | None = key(
        None, "Prompt tokens per context encoding window.", at_least=1, accelerator_only=True
    )
    flash_decoding_enabled: bool = flag("Shard the KV sequence over ranks that share a KV head.")
    k_cache_transposed: bool = flag("Store keys transposed.")
    disable_kv_cache_tiling: bool = flag("Never tile the KV cache.")
    apply_seq_ids_mask: bool = flag("Rows absent from a decode step write to a line of their own.")
    kv_cache_quant: bool = key(False, "fp8 KV cache, library versions before 0.8.")
    kv_quant_config: KVQuantizationConfig | None = key(None, "fp8 KV cache, library versions from 0.8.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class QuantizationKeys(CacheKeys):
    """Weight quantisation."""

    quantized: bool = key(False, "Serve quantised weights.")
    quantized_checkpoints_path: str | None = key(
        None,
        "Directory (safetensors) of a quantised checkpoint; where the accelerator's loader looks for it.",
        read=_in_home,
    )
    quantization_type: str = key(
        "per_tensor_symmetric",
        "What a scale belongs to.",
        choices=[
            "per_tensor_symmetric",
            "per_channel_symmetric",
            "expert_wise_per_channel_symmetric",
            "blockwise_symmetric",
        ],
    )
    quantization_dtype: str = key(
        "int8",
        "Storage type of quantised weights. int4 (groups of 32) is an extension of the cpu target.",
        choices=["int8", "f8e4m3", "f8e5m2", "f4e2m1fn_x4", "int4"],
    )
    quantization_block_size: list[int] | None = key(None, "Block shape of blockwise scales.", at_least=1, read=_as_list)
    quantization_block_axis: list[int] | None = key(None, "Axes that blocks run along.", at_least=0, read=_as_list)
    quantization_scale_dtype: str = key("f32", "Storage type of scales.")
    modules_to_not_convert: list[str] | None = key(None, "Modules that stay unquantised.")
    draft_model_modules_to_not_convert: list[str] | None = key(None, "Modules of the draft that stay unquantised.")
    is_mxfp4_compute: bool = flag("Compute in mxfp4.")
    is_full_model_shuffled: bool = flag("Weights are shuffled for mxfp4.")
    quantized_mlp_kernel_enabled: bool = flag("Use the quantised MLP kernel.")
    activation_quantization_type: str | None = key(None, "How activations are quantised.", accelerator_only=True)
    rmsnorm_quantize_kernel_enabled: bool = flag("Fuse normalisation and quantisation.")
    quantize_clamp_bound: float = key(
        float("inf"), "Bound of activations before quantisation.", above=0, accelerator_only=True
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SpeculationKeys(QuantizationKeys):
    """Speculative decoding and adapters."""

    speculation_length: int = key(
        0, "Tokens checked in a step, the target's own included. From num_speculative_tokens.", at_least=0
    )
    enable_fused_speculation: bool = key(False, "Draft and target run in one program.")
    enable_eagle_speculation: bool = key(False, "The draft is an EAGLE head. Implies enable_fused_speculation.")
    is_eagle3: bool = key(False, "The EAGLE head is of version 3.")
    is_eagle_draft: bool = key(False, "Set by NxD Inference on the draft's copy.")
    enable_eagle_draft_input_norm: bool = key(False, "The EAGLE head normalises its inputs.")
    eagle_rolling_buffer_kernel_enabled: bool = flag("Use the kernel for EAGLE's hidden states.")
    token_tree_config: dict[str, Any] | None = key(None, "Token tree: a mapping of node to children.")
    is_medusa: bool = key(False, "The model has Medusa heads.")
    medusa_speculation_length: int = key(0, "Tokens checked in a Medusa step.", at_least=0)
    num_medusa_heads: int = key(0, "Medusa heads.", at_least=0)
    medusa_tree: list[Any] | None = key(None, "Medusa's tree of candidates.")
    lora_config: LoraServingConfig | None = key(None, "LoRA adapters.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ParallelKeys(SpeculationKeys):
    """Parallelism."""

    tp_degree: int = key(1, "Logical cores the model is split over. From tensor_parallel_size.", at_least=1)
    pp_degree: int = key(1, "Pipeline stages; serving needs 1.", at_least=1, at_most=1)
    ep_degree: int = key(1, "Expert-parallel degree.", at_least=1, accelerator_only=True)
    cp_degree: int = key(1, "Context-parallel degree of context encoding.", at_least=1, accelerator_only=True)
    mlp_cp_degree: int = key(1, "Context-parallel degree of MLPs.", at_least=1, accelerator_only=True)
    attention_dp_degree: int = key(
        1, "Data-parallel degree of attention in token generation.", at_least=1, accelerator_only=True
    )
    world_size: int = derived(
        lambda c: c.tp_degree * c.pp_degree * c.ep_degree,
        "tp_degree * pp_degree * ep_degree",
        "Ranks in all.",
        at_least=1,
        accelerator_only=True,
    )
    start_rank_id: int = key(0, "First rank on this host.", at_least=0, accelerator_only=True)
    local_ranks_size: int = derived(
        lambda c: c.world_size, "world_size", "Ranks on this host.", at_least=1, accelerator_only=True
    )
    sequence_parallel_enabled: bool = flag("Shard activations over the sequence in context encoding.")
    weight_gather_seq_len_threshold: int = key(
        32768, "Length from which weights are gathered.", at_least=1, accelerator_only=True
    )
    save_sharded_checkpoint: bool = flag("Write sharded weights into the artifact, so that it can be moved.")
    skip_sharding: bool = flag("Do not shard weights when compiling.")
    enable_ve_data_parallel: bool = flag("Run the vision encoder data-parallel.")
    logical_nc_config: int = derived(
        lambda c: _default_logical_cores(),
        "NEURON_LOGICAL_NC_CONFIG or NEURON_RT_VIRTUAL_CORE_SIZE, else 2 on trn2 and trn3, else 1",
        "Physical cores in a logical one.",
        at_least=1,
        at_most=2,
        accelerator_only=True,
    )
    ep_dispatch_cc_option: str = key(
        "AR_AG", "Collectives of expert dispatch.", choices=["AR_AG", "RS_AG", "AG_AR"], accelerator_only=True
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class KernelKeys(ParallelKeys):
    """Kernels and compiler."""

    fused_qkv: bool = flag("One weight for q, k and v.")
    qk_layernorm: bool = flag("Normalise q and k.")
    pre_rope_rmsnorm: bool = flag("Normalise q and k before rotation in the attention kernel.")
    attn_cls: str = key("NeuronLlamaAttention", "Attention class of NxD Inference.", accelerator_only=True)
    attn_kernel_enabled: bool | None = flag("Use the attention kernel in context encoding; none: where it pays.", None)
    strided_context_parallel_kernel_enabled: bool = flag("Use the strided context-parallel kernel.")
    qkv_kernel_enabled: bool = flag("Use the QKV kernel.")
    qkv_nki_kernel_enabled: bool = flag("Use the NKI QKV kernel.")
    qkv_cte_nki_kernel_fuse_rope: bool = flag("Fuse rotation into the QKV kernel.")
    qkv_kernel_nbsd_layout: bool = flag("Layout of the QKV kernel's output.")
    qkv_kernel_fuse_residual_add: bool = flag("Fuse the residual addition into the QKV kernel.")
    mlp_kernel_enabled: bool = flag("Use the MLP kernel.")
    mlp_tkg_nki_kernel_enabled: bool = flag("Older name of mlp_kernel_enabled.")
    mlp_kernel_fuse_residual_add: bool = flag("Fuse the residual addition into the MLP kernel.")
    fused_rmsnorm_skip_gamma: bool = flag("Leave the norm's weight to the next matrix.")
    out_proj_kernel_enabled: bool = flag("Use the output projection kernel.")
    attn_tkg_nki_kernel_enabled: bool = flag("Older name of attn_block_tkg_nki_kernel_enabled.")
    attn_tkg_builtin_kernel_enabled: bool = flag("Older name of attn_block_tkg_nki_kernel_enabled.")
    attn_block_tkg_nki_kernel_enabled: bool = flag("Use the attention block kernel in token generation.")
    attn_block_tkg_nki_kernel_cache_update: bool = flag("That kernel writes the KV cache too.")
    attn_block_tkg_nki_kernel_cascaded_attention: bool = flag("That kernel cascades its reductions.")
    attn_block_tkg_nki_kernel_use_online_softmax: bool = flag("That kernel uses online softmax.", True)
    attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb: bool = flag("That kernel avoids copies by the vector engine.")
    attn_block_cte_nki_kernel_enabled: bool = flag("Older switch for all four context encoding kernels.")
    moe_fused_nki_kernel_enabled: bool | None = flag("Use the fused expert kernel.", None)
    router_topk_nki_kernel_enabled: bool | None = flag("Use the router's top-k kernel.", None)
    expert_mlp_nki_kernel_enabled: bool | None = flag("Use the expert MLP kernel.", None)
    shared_mlp_nki_kernel_enabled: bool | None = flag("Use the shared expert MLP kernel.", None)
    lm_head_pad: bool = derived(
        lambda c: c.logical_nc_config > 1, "logical_nc_config > 1", "Pad the vocabulary shards.", accelerator_only=True
    )
    lm_head_pad_alignment_size: int = key(1, "Alignment of that padding.", at_least=1, accelerator_only=True)
    cc_pipeline_tiling_factor: int = key(
        2, "Tiles that collectives are pipelined in.", at_least=1, accelerator_only=True
    )
    seq_len_threshold_for_cc_tiling: int = key(
        16384, "Length from which they are tiled.", at_least=1, accelerator_only=True
    )
    target: str | None = key(None, "Compiler target.", accelerator_only=True)
    weights_to_skip_layout_optimization: list[str] = key([], "Weights that keep their layout.", accelerator_only=True)
    dma_order_config: dict[str, Any] | None = key(None, "Order of transfers, for the compiler.", accelerator_only=True)
    scratchpad_page_size: int | None = derived(
        lambda c: LONG_CONTEXT_SCRATCHPAD_PAGE_SIZE if c.max_context_length >= LONG_CONTEXT else None,
        f"{LONG_CONTEXT_SCRATCHPAD_PAGE_SIZE} from max_context_length {LONG_CONTEXT}",
        "Page size of the compiler's scratchpad.",
        at_least=1,
        accelerator_only=True,
    )
    enable_spill_reload_dge: bool = flag("Generate descriptors for spilled data on the device.")
    enable_cte_modular_flow: bool = flag("Compile context encoding in modules.")
    layer_boundary_markers: bool = flag("Mark layers in the program.")
    skip_warmup: bool = flag("Do not run every program once at load.")
    enable_output_completion_notifications: bool = flag("Signal finished outputs.")
    disable_numeric_cc_token: bool = flag("Drop the numeric token of collectives.")
    switch_cc: bool = flag("Use switch collectives.")
    padded_hidden_size: int | None = key(None, "Hidden size after padding.", at_least=1, accelerator_only=True)
    padded_intermediate_size: int | None = key(None, "MLP width after padding.", at_least=1, accelerator_only=True)
    tensor_capture_config: TensorCaptureConfig | None = key(
        None, "Capture of intermediate tensors.", accelerator_only=True
    )
    tensor_replacement_config: dict[str, Any] | None = key(
        None, "Replacement of tensors, for debugging.", accelerator_only=True
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ModelKeys(KernelKeys):
    """Mixture of experts and vision."""

    capacity_factor: float | None = key(
        None, "Expert capacity; none: no token is dropped.", above=0, accelerator_only=True
    )
    glu_mlp: bool = key(True, "Experts have gated MLPs.", accelerator_only=True)
    glu_type: str = key("glu", "Form of the gate.", choices=["glu", "swiglu"], accelerator_only=True)
    hidden_act_scaling_factor: float = key(1.0, "Scale inside the activation.", accelerator_only=True)
    hidden_act_bias: float = key(0.0, "Bias inside the activation.", accelerator_only=True)
    gate_clamp_upper_limit: float | None = key(None, "Upper bound of the gate.", accelerator_only=True)
    gate_clamp_lower_limit: float | None = key(None, "Lower bound of the gate.", accelerator_only=True)
    up_clamp_upper_limit: float | None = key(None, "Upper bound of the up projection.", accelerator_only=True)
    up_clamp_lower_limit: float | None = key(None, "Lower bound of the up projection.", accelerator_only=True)
    early_expert_affinity_modulation: bool = flag("Scale tokens before the experts.")
    disable_normalize_top_k_affinities: bool = flag("Do not normalise the router's weights.")
    fused_shared_experts: bool = flag("One weight for the shared expert's gate and up.")
    shared_experts_sequence_parallel_enabled: bool = flag("Shard shared experts over the sequence.")
    transpose_shared_experts_weights: bool = flag("Store shared experts transposed.")
    moe_mask_padded_tokens: bool = flag("Keep padding out of the experts.")
    use_index_calc_kernel: bool = flag("Use the index kernel.")
    return_expert_index: bool = flag("Return the chosen experts.")
    return_router_logits: bool = flag("Return the router's logits.")
    moe_tp_degree: int = key(1, "Tensor-parallel degree of experts.", at_least=1, accelerator_only=True)
    moe_ep_degree: int = key(1, "Expert-parallel degree of experts.", at_least=1, accelerator_only=True)
    hybrid_sharding_config: HybridShardingConfig | None = key(None, "Expert degrees by phase.", accelerator_only=True)
    blockwise_matmul_config: dict[str, Any] = key(
        {}, "Blocked expert product, passed to the library.", accelerator_only=True
    )
    router_config: dict[str, Any] | None = key(None, "Router, passed to the library.", accelerator_only=True)
    router_dtype: str | None = key(
        None, "Arithmetic type of the router.", choices=TORCH_DTYPES, read=dtype_name, accelerator_only=True
    )
    act_fn: str | None = key(None, "Activation of the router.", choices=["softmax", "sigmoid"], accelerator_only=True)
    skip_vision: bool = flag("Leave the vision encoder out.")
    vision_neuron_config: VisionNeuronConfig | None = key(
        None,
        "The vision encoder of an image-to-text model. `text_neuron_config` is another spelling of all other keys.",
        accelerator_only=True,
    )
