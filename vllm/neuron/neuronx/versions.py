"""What differs between the versions of NxD Inference that are driven, 0.4 to 0.9 (Neuron SDK 2.24 to 2.29).

The library only logs a warning for a key it does not know, so keys are held against these tables first. Found by
reading the package's metadata: nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import NamedTuple

PACKAGE = "neuronx-distributed-inference"


class Version(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = Version(0, 4)
NEWEST = Version(0, 9)

KEYS_SINCE: dict[str, Version] = {
    **dict.fromkeys(("attention_dp_degree", "scratchpad_page_size", "lm_head_pad"), Version(0, 5)),
    **dict.fromkeys(
        (
            "attn_block_tkg_nki_kernel_cascaded_attention",
            "strided_context_parallel_kernel_enabled",
            "hybrid_sharding_config",
        ),
        Version(0, 6),
    ),
    **dict.fromkeys(
        (
            "windowed_context_encoding_size",
            "mlp_cp_degree",
            "is_mxfp4_compute",
            "quantization_block_size",
            "quantization_block_axis",
            "is_eagle3",
            "tensor_capture_config",
        ),
        Version(0, 7),
    ),
    **dict.fromkeys(
        ("token_generation_batches", "disable_argmax_kernel", "kv_quant_config", "dma_order_config"), Version(0, 8)
    ),
}
"""First version that knows a key of NeuronConfig; keys not listed are as old as `OLDEST`."""

KEYS_UNTIL: dict[str, tuple[Version, str]] = {
    "chunked_prefill_config": (Version(0, 7), "Leave it out: later versions do not have chunked prefill"),
    "kv_cache_quant": (Version(0, 7), "Use kv_quant_config"),
}
"""Last version in which a key has its effect, and what to do after it."""

SAMPLING_KEYS_SINCE: dict[str, Version] = {"sampling_dp_degree": Version(0, 8)}

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
