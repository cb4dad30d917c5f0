"""What the KV cache is stored as: vLLM's `kv_cache_dtype` and NxD Inference's `kv_cache_quant` and `kv_quant_config`.

Names after `settled_kv_dtype`: "auto" (as the arithmetic), "bfloat16", "float32", "fp8" (e4m3, cast without a scale)
and "int8" (a scale for each token and head; the cpu target's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.settings.faults import Faults
from vllm.settings.parallel import kv_bytes_per_token
from vllm.sizes import DTYPE_BYTES


def plain_kv_dtype(dtype: str) -> str:
    """`kv_cache_dtype` under the one name of its type."""
    return "fp8" if dtype == "fp8_e4m3" else dtype


def settled_kv_dtype(dtype: str, override: Mapping[str, Any], faults: Faults) -> str:
    """The one name for what the option and the Neuron keys say."""
    dtype = plain_kv_dtype(dtype)
    key = next((name for name in ("kv_cache_quant", "kv_quant_config") if _asks(override.get(name))), None)
    if key is None:
        return dtype
    if dtype not in ("auto", "fp8"):
        why = f"kv_cache_dtype is {dtype}, and {key} means fp8"
        faults.add(key, override[key], why, f"Leave {key} out, or use kv_cache_dtype=fp8")
    return "fp8"


def _asks(value: Any) -> bool:
    return value is True or isinstance(value, Mapping)


def kv_token_bytes(hf_config: Mapping[str, Any], dtype: str, arithmetic: str) -> int:
    """Bytes of one token's KV over all layers, for a settled dtype; 0 where the config does not describe attention."""
    size = DTYPE_BYTES.get(arithmetic if dtype == "auto" else dtype, 0)
    scales = kv_bytes_per_token({**hf_config, "head_dim": 1}, DTYPE_BYTES["float32"]) if dtype == "int8" else 0
    return kv_bytes_per_token(hf_config, size) + scales
