"""Sizes in bytes: binary units, and one value of each dtype."""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30

DTYPE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "fp8": 1,
    "int8": 1,
}
"""Bytes of one value, by the names of PyTorch and those of `kv_cache_dtype`."""
