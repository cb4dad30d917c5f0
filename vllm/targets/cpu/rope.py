"""Rotary position embedding: inverse frequencies and the attention factor of a config, computed once, at compile time.

The angle of pair i at position p is p * inv_freq[i]. Without scaling, inv_freq[i] = theta^(-2i/d) for the d rotated
dimensions of a head. The kinds of scaling, by `rope_type`, and where their formulas come from:

    linear    every frequency divided by `factor` (position interpolation, arXiv:2306.15595)
    dynamic   theta grown for sequences beyond the trained length (NTK-aware interpolation, as in transformers). The
              growth follows the sequence there; here it is that of the longest sequence, so it never changes
    yarn      a ramp between unscaled and divided frequencies over the dimensions, and cos and sin multiplied by an
              attention factor (arXiv:2309.00071, section 3.3 and equation 22)
    llama3    by wavelength: short ones stay, long ones are divided, between them a blend (Llama 3.1's model card code)
    factors   each frequency divided by its own number, as GGUF files store it
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scaling = dict[str, Any]


def rope_parameters(config: dict[str, Any], max_len: int | None = None) -> tuple[list[float], float]:
    """(inv_freq, attention factor) of a config in normal form; rotates 2 * len(inv_freq) dimensions of each head.

    max_len: the longest sequence that will be run, for kinds that depend on it. Default: max_position_embeddings.
    """
    scaling: Scaling = config["rope_scaling"] or {"rope_type": "default"}
    kind = scaling["rope_type"]
    if kind not in _KINDS:
        raise ValueError(f"rope scaling of type {kind!r} is not supported; supported: {', '.join(_KINDS)}")
    try:
        with np.errstate(all="ignore"):
            inv_freq, attention_factor = _KINDS[kind](config, scaling, max_len or config["max_position_embeddings"])
    except KeyError as error:
        raise ValueError(f"rope scaling of type {kind!r} needs {error}; the config has {sorted(scaling)}") from None
    except (ZeroDivisionError, OverflowError):
        inv_freq, attention_factor = np.array([np.nan]), 1.0
    if rotary_dim(config) % 2:
        raise ValueError(f"rope rotates pairs, and {rotary_dim(config)} dimensions of a head are to be rotated")
    if not np.isfinite([*inv_freq, attention_factor]).all():
        raise ValueError(f"rope of type {kind!r} with {scaling} gives angles that are not numbers")
    return inv_freq.astype(np.float32).tolist(), float(attention_factor)


def rotary_dim(config: dict[str, Any]) -> int:
    """How many dimensions of a head are rotated."""
    return int(config["head_dim"] * config["partial_rotary_factor"])


def _base_frequencies(config: dict[str, Any], theta: float | None = None) -> Floats:
    dim = rotary_dim(config)
    return np.power(theta or config["rope_theta"], -np.arange(0, dim, 2) / dim)


def _default(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    return _base_frequencies(config), 1.0


def _linear(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    return _base_frequencies(config) / scaling["factor"], 1.0


def _dynamic(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    trained_len, factor, dim = config["max_position_embeddings"], scaling["factor"], rotary_dim(config)
    growth = factor * max(max_len, trained_len) / trained_len - (factor - 1)
    return _base_frequencies(config, config["rope_theta"] * growth ** (dim / (dim - 2))), 1.0


def _yarn(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    dim, theta = rotary_dim(config), config["rope_theta"]
    trained_len = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = scaling.get("factor") or config["max_position_embeddings"] / trained_len

    def dimension_of(num_rotations: float) -> float:
        return dim * math.log(trained_len / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(scaling.get("beta_fast") or 32)
    high = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    base = _base_frequencies(config)
    return base / factor * ramp + base * (1 - ramp), _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: Scaling, factor: float) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)


def _llama3(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained_len = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    base = _base_frequencies(config)
    wavelength = 2 * math.pi / base
    smooth = np.clip((trained_len / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * base / factor + smooth * base, 1.0


def _factors(config: dict[str, Any], scaling: Scaling, max_len: int) -> tuple[Floats, float]:
    base, factors = _base_frequencies(config), np.asarray(scaling["factors"])
    if factors.shape != base.shape:
        raise ValueError(f"{factors.size} rope factors for {base.size} frequencies")
    return base / factors, 1.0


_KINDS: dict[str, Callable[[dict[str, Any], Scaling, int], tuple[Floats, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "factors": _factors,
}
