"""Bucket ladders: the lengths that programs are compiled for, and which of them a piece of work runs in.

Ladders and choice are NxD Inference's own, so that padding counted on any target is what the accelerator would pay.
Lengths are in tokens; a ladder ascends and its last bucket is the longest legal length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm.core.contract import BucketUse

SHORTEST_BUCKET = 128
SHORTEST_PREFIX_BUCKET = 512
SHORTEST_PREFIX_DECODE_BUCKET = 256

Pair = tuple[int, int]


def generate_buckets(lo: int, hi: int) -> list[int]:
    """Powers of two from `lo`, then `hi`.

    log2(hi) is rounded, not floored: a power of two within a factor of sqrt(2) below `hi` is left out, so 181 follows
    nothing (not 128) and 182 follows 128.
    """
    if lo == hi:
        return [hi]
    return [2**exponent for exponent in range(int(math.log2(lo)), round(math.log2(hi)))] + [hi]


def ladder(maximum: int, user: Sequence[int] | None = None, enable_bucketing: bool = True) -> list[int]:
    """The ladder up to `maximum`: the user's list, the generated one, or `maximum` alone with bucketing off."""
    if not enable_bucketing:
        return [maximum]
    return list(user) if user else generate_buckets(SHORTEST_BUCKET, maximum)


def ladder_fault(buckets: Sequence[int], maximum: int) -> tuple[str, list[int]] | None:
    """Why a user's list cannot be a ladder up to `maximum`, and the nearest list that can; None if it can.

    A list that merely ends below `maximum` is no fault: see `extended`.
    """
    mended = sorted({bucket for bucket in buckets if 0 < bucket <= maximum}) or [maximum]
    if not buckets:
        return "an empty list serves no length", mended
    if min(buckets) <= 0:
        return "buckets are lengths in tokens and must be positive", mended
    if max(buckets) > maximum:
        return f"the largest bucket {max(buckets)} exceeds the longest length {maximum}", mended
    if any(a >= b for a, b in itertools.pairwise(buckets)):
        return "buckets must ascend", mended
    return None


def extended(buckets: Sequence[int], maximum: int) -> list[int]:
    """`buckets` with `maximum` appended where they end below it, so that every legal length is served."""
    return list(buckets) if buckets[-1] == maximum else [*buckets, maximum]


def first_fit(length: int, buckets: Sequence[int]) -> int:
    """The bucket that `length` runs in: the first that is strictly greater; the largest one also serves its own length.

    For context encoding `length` is the number of prompt tokens; for token generation it is the position of the token
    being computed. The last legal position is one below the largest bucket.
    """
    for bucket in buckets:
        if length < bucket:
            return bucket
    if length == buckets[-1]:
        return buckets[-1]
    raise ValueError(f"length {length} exceeds the largest bucket {buckets[-1]}")


def prefix_prefill_buckets(
    max_context_length: int, user: Sequence[int] | None = None, user_prefix: Sequence[int] | None = None
) -> list[Pair]:
    """Context encoding under prefix caching: (tokens to compute, tokens of cached prefix), row by row."""
    prefills = list(user) if user else generate_buckets(SHORTEST_PREFIX_BUCKET, max_context_length)
    prefixes = list(user_prefix) if user_prefix else generate_buckets(SHORTEST_PREFIX_BUCKET, max_context_length)
    return [(prefill, prefix) for prefill in prefills for prefix in [0, *prefixes]]


def prefix_decode_buckets(max_length: int, user: Sequence[int] | None = None) -> list[Pair]:
    """Token generation under prefix caching: (1, tokens of context)."""
    lengths = list(user) if user else generate_buckets(SHORTEST_PREFIX_DECODE_BUCKET, max_length)
    return [(1, length) for length in lengths]


def chunk_buckets(
    max_context_length: int, max_length: int, max_num_seqs: int, q_tile_size: int, kv_tile_size: int
) -> list[Pair]:
    """Chunked prefill: (tokens of the chunk, tiles of the attention grid): smallest, median and largest of each."""
    num_q_tiles = math.ceil(max_context_length / q_tile_size)
    median = (num_q_tiles - 1) // 2
    chunks = sorted({q_tile_size, q_tile_size * (median + 1), q_tile_size * num_q_tiles})
    max_tiles = num_q_tiles * math.ceil(max_length * max_num_seqs / kv_tile_size)
    tiles = [1, max_tiles // 2, max_tiles] if max_tiles >= 4 else [max_tiles]
    return [(chunk, count) for chunk in chunks for count in tiles]


@dataclass(slots=True)
class BucketTotals:
    """What one (kind, bucket) did: forwards, rows and tokens of real work, and those of the compiled shape."""

    uses: int = 0
    rows: int = 0
    tokens: int = 0
    bucket_rows: int = 0
    bucket_tokens: int = 0

    @property
    def padded_tokens(self) -> int:
        return self.bucket_tokens - self.tokens

    @property
    def padding_share(self) -> float:
        """Share of the compiled shape's tokens that was padding, 0 to 1."""
        return self.padded_tokens / self.bucket_tokens if self.bucket_tokens else 0.0

    def add(self, use: BucketUse) -> None:
        self.uses += 1
        self.rows += use.rows
        self.tokens += use.tokens
        self.bucket_rows += use.bucket_rows
        self.bucket_tokens += use.bucket_tokens


class BucketStats:
    """Uses and padding by (kind, bucket), from the `BucketUse` of every forward."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, int], BucketTotals] = {}

    def add(self, uses: Iterable[BucketUse]) -> None:
        for use in uses:
            self.totals.setdefault((use.kind, use.bucket), BucketTotals()).add(use)

    def to_dict(self) -> list[dict[str, str | int]]:
        """One plain mapping a (kind, bucket), in order, for metrics."""
        return [
            {
                "kind": kind,
                "bucket": bucket,
                "uses": totals.uses,
                "rows": totals.rows,
                "tokens": totals.tokens,
                "bucket_tokens": totals.bucket_tokens,
                "padded_tokens": totals.padded_tokens,
            }
            for (kind, bucket), totals in sorted(self.totals.items())
        ]

    def summary(self) -> str:
        """One line for the log, e.g. "decode 128: 40 uses, 75% padding; prefill 256: 4 uses, 12% padding"."""
        return "; ".join(
            f"{kind} {bucket}: {totals.uses} uses, {totals.padding_share:.0%} padding"
            for (kind, bucket), totals in sorted(self.totals.items())
        )
