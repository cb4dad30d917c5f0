"""What differs between the versions of NxD Inference that are driven, 0.4 to 0.9 (Neuron SDK 2.24 to 2.29).

The library only logs a warning for a key it does not know, so keys are held against these tables first. Found by
reading the package's metadata: nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import re

from vllm.settings.target import Version as Version

PACKAGE = "neuronx-distributed-inference"


OLDEST = Version(0, 4)
NEWEST = Version(0, 9)

SDK = {
    Version(0, 4): "2.24",
    Version(0, 5): "2.25",
    Version(0, 6): "2.26",
    Version(0, 7): "2.27",
    Version(0, 8): "2.28",
    Version(0, 9): "2.29",
}
"""Release of the Neuron SDK that carries a version."""

_NEW_KEYS: dict[Version, tuple[str, ...]] = {
    Version(0, 5): (
        "attention_dp_degree",
        "attn_block_cte_nki_kernel_enabled",
        "moe_fused_nki_kernel_enabled",
        "router_topk_nki_kernel_enabled",
        "expert_mlp_nki_kernel_enabled",
        "shared_mlp_nki_kernel_enabled",
        "lm_head_pad",
        "lm_head_pad_alignment_size",
        "scratchpad_page_size",
        "enable_output_completion_notifications",
        "shared_experts_sequence_parallel_enabled",
        "return_expert_index",
    ),
    Version(0, 6): (
        "strided_context_parallel_kernel_enabled",
        "attn_block_tkg_nki_kernel_cascaded_attention",
        "enable_cte_modular_flow",
        "glu_type",
        "hidden_act_scaling_factor",
        "hidden_act_bias",
        "transpose_shared_experts_weights",
        "moe_tp_degree",
        "moe_ep_degree",
        "hybrid_sharding_config",
    ),
    Version(0, 7): (
        "windowed_context_encoding_size",
        "quantization_block_size",
        "quantization_block_axis",
        "quantization_scale_dtype",
        "is_mxfp4_compute",
        "is_full_model_shuffled",
        "is_eagle3",
        "mlp_cp_degree",
        "pre_rope_rmsnorm",
        "qkv_nki_kernel_enabled",
        "qkv_cte_nki_kernel_fuse_rope",
        "mlp_tkg_nki_kernel_enabled",
        "out_proj_kernel_enabled",
        "attn_block_tkg_nki_kernel_use_online_softmax",
        "disable_numeric_cc_token",
        "switch_cc",
        "padded_hidden_size",
        "padded_intermediate_size",
        "tensor_capture_config",
        "tensor_replacement_config",
        "gate_clamp_upper_limit",
        "gate_clamp_lower_limit",
        "up_clamp_upper_limit",
        "up_clamp_lower_limit",
        "moe_mask_padded_tokens",
        "use_index_calc_kernel",
        "return_router_logits",
    ),
    Version(0, 8): (
        "token_generation_batches",
        "disable_argmax_kernel",
        "kv_quant_config",
        "eagle_rolling_buffer_kernel_enabled",
        "ep_dispatch_cc_option",
        "attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb",
        "weights_to_skip_layout_optimization",
        "dma_order_config",
    ),
    Version(0, 9): ("enable_ve_data_parallel",),
}
KEYS_SINCE: dict[str, Version] = {name: since for since, names in _NEW_KEYS.items() for name in names}
"""First version that knows a key of NeuronConfig; keys not listed are as old as `OLDEST`."""

KEYS_UNTIL: dict[str, tuple[Version, str]] = {
    "chunked_prefill_config": (Version(0, 7), "Leave it out: later versions do not have chunked prefill"),
    "kv_cache_quant": (Version(0, 7), "Use kv_quant_config"),
}
"""Last version in which a key has its effect, and what to do after it."""

SAMPLING_KEYS_SINCE: dict[str, Version] = {"top_k_kernel_enabled": Version(0, 5), "sampling_dp_degree": Version(0, 8)}

MODELS_SINCE: dict[str, Version] = {
    "llama": Version(0, 4),
    "mllama": Version(0, 4),
    "mixtral": Version(0, 4),
    "dbrx": Version(0, 4),
    "llama4": Version(0, 5),
    "qwen2": Version(0, 5),
    "qwen3": Version(0, 5),
    "qwen3_moe": Version(0, 6),
    "gpt_oss": Version(0, 7),
    "pixtral": Version(0, 8),
    "qwen2_vl": Version(0, 8),
    "qwen3_vl": Version(0, 8),
    "gemma3": Version(0, 9),
}
"""First version whose registry has a model under this name."""


def parse_version(text: str) -> Version:
    """The version that a package's metadata names, e.g. "0.7.15063+bafa28d5". Raises ValueError for any other text."""
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"{PACKAGE} has the version {text!r}, which cannot be understood")
    return Version(int(match[1]), int(match[2]))


def installed(package: str = PACKAGE) -> str:
    """A package's version as its metadata has it; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
