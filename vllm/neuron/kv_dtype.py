"""What the KV cache is stored as: vLLM's `kv_cache_dtype` and NxD Inference's `kv_cache_quant` and `kv_quant_config`.

Names after `settled_kv_dtype`: "auto" (as the arithmetic), "bfloat16", "float32", "fp8" (e4m3, cast without a scale)
and "int8" (a scale for each token and head; the cpu target's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.neuron.faults import Faults
from vllm.neuron.neuron_config_keys import ModelKeys
from vllm.neuron.parallel import kv_bytes_per_token

EIGHT_BIT_KV_TARGETS = frozenset({"cpu", "null"})
"""Targets on which the engine serves an 8-bit KV cache."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}
_SCALE_BYTES = 4
_WHY_NOT = "a quantised KV cache is not served on this target yet"


def settled_kv_dtype(dtype: str, override: Mapping[str, Any], faults: Faults) -> str:
    """The one name for what the option and the Neuron keys say."""
    dtype = "fp8" if dtype == "fp8_e4m3" else dtype
    key = next((name for name in ("kv_cache_quant", "kv_quant_config") if _asks(override.get(name))), None)
    if key is None:
        return dtype
    if dtype not in ("auto", "fp8"):
        why = f"kv_cache_dtype is {dtype}, and {key} means fp8"
        faults.add(key, override[key], why, f"Leave {key} out, or use kv_cache_dtype=fp8")
    return "fp8"


def _asks(value: Any) -> bool:
    return value is True or isinstance(value, Mapping)


def refuse_kv_dtype(dtype: str, target: str, faults: Faults) -> None:
    """What `kv_cache_dtype` may not be on a target."""
    if dtype in ("fp8", "fp8_e4m3", "int8") and target not in EIGHT_BIT_KV_TARGETS:
        faults.add("kv_cache_dtype", dtype, _WHY_NOT, "Leave it out")


def refuse_kv_keys(config: ModelKeys, target: str, faults: Faults) -> None:
    """What NxD Inference's keys may not ask of a target."""
    quantised = config.kv_quant_config
    if target not in EIGHT_BIT_KV_TARGETS:
        for name in ("kv_cache_quant", "kv_quant_config"):
            if value := getattr(config, name):
                faults.add(name, value, _WHY_NOT, "Leave it out")
    elif quantised is not None:
        if quantised.quant_dtype != "float8_e4m3fn":
            why = f"the {target} target keeps 8-bit floats as float8_e4m3fn"
            faults.add("kv_quant_config.quant_dtype", quantised.quant_dtype, why, "Use float8_e4m3fn, or leave it out")
        if not quantised.direct_cast:
            why = f"the {target} target casts keys and values without a scale of their tensor"
            fix = 'Leave it out; kv_cache_dtype="int8" keeps a scale for each token and head'
            faults.add("kv_quant_config.direct_cast", False, why, fix)


def kv_token_bytes(hf_config: Mapping[str, Any], dtype: str, arithmetic: str) -> int:
    """Bytes of one token's KV over all layers, for a settled dtype; 0 where the config does not describe attention."""
    size = _BYTES.get(arithmetic if dtype == "auto" else dtype, 0)
    scales = kv_bytes_per_token({**hf_config, "head_dim": 1}, _SCALE_BYTES) if dtype == "int8" else 0
    return kv_bytes_per_token(hf_config, size) + scales
