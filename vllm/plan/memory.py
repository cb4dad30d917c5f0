"""Bytes on each core as a function of rows and lengths, so that the largest that fit can be solved for.

Counted exactly: weights (see `weights` and `companions`), and the KV cache: 2 x layers x lines x length x KV heads of a
core x head_dim x bytes of a value, where fused speculation makes lines longer. Estimated: what a program needs while it
runs, the larger of

    prefill   T = prompts x longest bucket:  T x b x (2 H + 2 q + 2 kv + 2 m), over tp where the sequence is sharded,
              and the scores, prompts x heads x bucket² x 4, for buckets below 4096 (longer ones are computed in tiles)
    decode    R rows:  R x (b x (2 H + 2 q + 2 kv + 2 m) + 4 x vocabulary share)

with b bytes of a value, H the hidden size, q, kv and m the widths of one core's query heads, KV heads and MLP (for a
mixture of experts those of the experts of a token). Not counted: instructions, rings and buffers of collectives; the
budget leaves `1 - gpu_memory_utilization` of a core's memory to them. No figure was measured on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm.plan.weights import dense_size, expert_size, num_experts
from vllm.settings.faults import Faults
from vllm.settings.kv_layout import cached_positions, kv_layout
from vllm.settings.parallel import HeadSharding
from vllm.sizes import DTYPE_BYTES

TILED_ATTENTION_FROM = 4096
MAX_ROWS = 4096
"""Largest max_num_seqs that is looked for."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """One core's KV cache: lines x length tokens of `bytes_per_token`. With block KV a line is a block."""

    lines: int
    length: int
    bytes_per_token: int

    @property
    def tokens(self) -> int:
        return self.lines * self.length

    @property
    def bytes(self) -> int:
        return self.tokens * self.bytes_per_token


@dataclass(frozen=True, slots=True)
class CoreMemory:
    """weights: bytes by kind on each core. The rest follows from rows and lengths, by method.

    draft: of the model that drafts for this one, whose weights are among `weights`; only its KV cache is asked for.
    """

    hf_config: Mapping[str, Any]
    heads: HeadSharding
    neuron_config: Any
    weights: dict[str, int]
    kv_value_bytes: int
    draft: CoreMemory | None = None

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    def kv(self, rows: int | None = None, length: int | None = None) -> KVShape:
        """The KV cache for `rows` sequences of `length` tokens; as configured by default."""
        config = self.neuron_config
        per_token = (
            2
            * int(self.hf_config["num_hidden_layers"])
            * self._attention_heads().kv_heads_per_rank
            * self.heads.head_dim
            * self.kv_value_bytes
        )
        if config.is_block_kv_layout:
            size = config.pa_block_size
            blocks = config.pa_num_blocks
            if rows is not None or length is not None:
                length, rows = length or config.seq_len, rows or config.batch_size
                caching = config.is_prefix_caching
                blocks = kv_layout(length, rows, size, None, True, Faults(), prefix_caching=caching).num_blocks
            return KVShape(blocks + 1, size, per_token)
        lines = -(-(rows or config.batch_size) // config.attention_dp_degree) + config.kv_cache_padding_size
        drafted = config.speculation_length if config.enable_fused_speculation else 0
        return KVShape(lines, cached_positions(length or config.seq_len, drafted), per_token)

    def kv_bytes(self, rows: int | None = None, length: int | None = None) -> int:
        """KV caches of the model and of its draft."""
        return self.kv(rows, length).bytes + (self.draft.kv(rows, length).bytes if self.draft else 0)

    def _attention_heads(self) -> HeadSharding:
        dp = self.neuron_config.attention_dp_degree
        if dp == 1:
            return self.heads
        heads = self.heads
        return HeadSharding.plan(heads.degree // dp, heads.num_heads, heads.num_kv_heads, heads.head_dim)

    def activations(self, rows: int | None = None, length: int | None = None) -> int:
        """The estimate of the module's head."""
        config = self.neuron_config
        rows = rows or config.batch_size
        longest = config.max_context_length
        if length is not None:
            longest = length if longest == config.seq_len else min(longest, length)
        value, width = DTYPE_BYTES[config.torch_dtype], self._token_width()
        tokens = min(config.ctx_batch_size, rows) * longest
        prefill = tokens * width * value
        if config.sequence_parallel_enabled:
            prefill //= config.tp_degree
        if longest < TILED_ATTENTION_FROM:
            prefill += min(config.ctx_batch_size, rows) * self.heads.heads_per_rank * longest * longest * 4
        vocabulary = -(-int(self.hf_config["vocab_size"]) // self.heads.degree)
        return int(max(prefill, rows * (width * value + 4 * vocabulary)))

    def _token_width(self) -> int:
        """Values that a token occupies while a layer runs."""
        heads, tp = self.heads, self.heads.degree
        attention = (heads.heads_per_rank + heads.kv_heads_per_rank) * heads.head_dim
        size = dense_size(self.hf_config)
        if num_experts(self.hf_config):
            size = expert_size(self.hf_config) * int(self.hf_config.get("num_experts_per_tok") or 1)
        return 2 * (int(self.hf_config["hidden_size"]) + attention + -(-size // tp))

    def total(self, rows: int | None = None, length: int | None = None) -> int:
        return self.weight_bytes + self.kv_bytes(rows, length) + self.activations(rows, length)

    def most_rows(self, budget: int, length: int | None = None) -> int:
        """The largest max_num_seqs whose total fits `budget`; 0 if none does."""
        return _largest(lambda rows: self.total(rows, length) <= budget, MAX_ROWS)

    def longest(self, budget: int, bound: int) -> int:
        """The largest max_model_len up to `bound` that fits, with all else as configured; 0 if none does.

        Scores make the estimate drop where attention begins to be tiled, so both sides of that length are searched.
        """

        def fits(length: int) -> bool:
            return self.total(length=length) <= budget

        low = min(bound, TILED_ATTENTION_FROM - 1)
        above = _largest(lambda length: fits(length + low), bound - low)
        return low + above if above else _largest(fits, low)


def _largest(fits: Callable[[int], bool], bound: int) -> int:
    """The largest number up to `bound` that fits, where all below one that fits do; 0 if not even 1 does."""
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
