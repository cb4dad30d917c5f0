"""What a tensor-parallel degree does to attention heads on the accelerator.

NxD Inference accepts degrees that do not divide the heads: query heads are padded to a multiple of the degree, and KV
heads are replicated to the degree or, where that does not work out, to one KV head a query head. The `cpu` target
splits nothing; it accepts what the accelerator would and says what that would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INSTANCE_DEGREES: dict[str, tuple[int, ...]] = {
    "inf2": (1, 2, 4, 8, 24),
    "trn1": (1, 2, 8, 16, 32),
    "trn2": (1, 2, 4, 8, 16, 32, 64),
    "trn3": (1, 2, 4, 8, 16, 32, 64),
}
"""Degrees by platform, in logical cores (trn2 and trn3: two physical cores each)."""


def valid_degrees(platform: str = "") -> tuple[int, ...]:
    """The degrees of one platform, or with "" those that any platform has."""
    if platform:
        return INSTANCE_DEGREES[platform]
    return tuple(sorted({degree for degrees in INSTANCE_DEGREES.values() for degree in degrees}))


def degree_fault(degree: int, platform: str = "") -> str | None:
    """What is wrong with `degree`, naming the valid ones; None if nothing."""
    degrees = valid_degrees(platform)
    if degree in degrees:
        return None
    listed = ", ".join(map(str, degrees))
    where = f"{platform} has no such degree" if platform else "no Neuron instance has such a degree"
    return f"{where}. Valid: {listed}"


@dataclass(frozen=True, slots=True)
class HeadSharding:
    """Heads of a model and what becomes of them at `degree`.

    strategy: "none" (degree 1), "split", "replicate" (each KV head on several ranks) or "mha" (a KV head for each
        query head).
    padded_heads, sharded_kv_heads: over all ranks; both divide by `degree`.
    """

    degree: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    padded_heads: int
    sharded_kv_heads: int
    strategy: str

    @classmethod
    def plan(cls, degree: int, num_heads: int, num_kv_heads: int, head_dim: int) -> HeadSharding:
        padded_heads = -(-num_heads // degree) * degree
        strategy = _strategy(degree, num_heads, num_kv_heads)
        sharded_kv_heads = {"replicate": degree, "mha": padded_heads}.get(strategy, num_kv_heads)
        if num_heads == num_kv_heads:
            sharded_kv_heads = padded_heads
        return cls(degree, num_heads, num_kv_heads, head_dim, padded_heads, sharded_kv_heads, strategy)

    @classmethod
    def from_hf_config(cls, degree: int, hf_config: Mapping[str, Any]) -> HeadSharding | None:
        """The plan for a checkpoint's config.json; None where it does not describe attention heads."""
        num_heads = hf_config.get("num_attention_heads")
        if not num_heads:
            return None
        num_kv_heads = hf_config.get("num_key_value_heads") or num_heads
        head_dim = hf_config.get("head_dim") or hf_config.get("hidden_size", 0) // num_heads
        return cls.plan(degree, num_heads, num_kv_heads, head_dim)

    @property
    def heads_per_rank(self) -> int:
        return self.padded_heads // self.degree

    @property
    def kv_heads_per_rank(self) -> int:
        return self.sharded_kv_heads // self.degree

    @property
    def kv_copies(self) -> float:
        """KV memory over all ranks, relative to the model's own KV heads."""
        return self.sharded_kv_heads / self.num_kv_heads

    def describe(self) -> str:
        """One line: what the accelerator would do."""
        ranks = f"tensor_parallel_size={self.degree}: an accelerator would give each of {self.degree} cores "
        share = f"{self.heads_per_rank} of {self.num_heads} query heads"
        if self.padded_heads > self.num_heads:
            share += f" (padded to {self.padded_heads})"
        share += f" and {self.kv_heads_per_rank} KV heads"
        how = {
            "none": "",
            "split": "",
            "replicate": f", replicating {self.num_kv_heads} KV heads to {self.sharded_kv_heads}",
            "mha": f", converting {self.num_kv_heads} KV heads to {self.sharded_kv_heads}, one a query head",
        }[self.strategy]
        return ranks + share + how


def _strategy(degree: int, num_heads: int, num_kv_heads: int) -> str:
    if degree == 1:
        return "none"
    if num_heads == num_kv_heads or num_kv_heads % degree == 0:
        return "split"
    return "replicate" if degree % num_kv_heads == 0 else "mha"


def kv_bytes_per_token(hf_config: Mapping[str, Any], bytes_per_value: int) -> int:
    """KV cache bytes of one token over all layers, unsharded; 0 where the config does not describe attention."""
    heads = HeadSharding.from_hf_config(1, hf_config)
    if heads is None:
        return 0
    return 2 * int(hf_config.get("num_hidden_layers", 0)) * heads.num_kv_heads * heads.head_dim * bytes_per_value
