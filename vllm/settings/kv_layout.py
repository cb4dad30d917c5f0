"""How the KV cache is laid out: contiguous or in blocks, and in how many, from whatever part of it the user named.

Prefix caching, chunked prefill and block KV can be asked for in vLLM's terms (`enable_prefix_caching`,
`enable_chunked_prefill`, `block_size`, `num_gpu_blocks_override`, DISABLE_NEURON_CUSTOM_SCHEDULER) and in NxD
Inference's (`is_prefix_caching`, `chunked_prefill_config`, `is_block_kv_layout`, `prefix_buckets`, `pa_block_size`,
`pa_num_blocks`). Any part of them that does not contradict itself suffices; the rest follows:

- `prefix_buckets`, KV offload, a block shorter than a sequence, or `is_block_kv_layout` alone: prefix caching.
- `chunked_prefill_config`, or DISABLE_NEURON_CUSTOM_SCHEDULER unless the option says no: chunked prefill.
- prefix caching or chunked prefill: block KV, in blocks of the target's default size. Neither: contiguous KV.

Blocks are counted as usable ones: what a device reserves beside them (a null block, a sink) is never the user's to add.
There are always enough for `max_num_seqs` sequences of `max_model_len`. With prefix caching the default count holds a
quarter more, and at least one sequence more, for prefixes that nobody is using.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm import envs
from vllm.config import VllmConfig
from vllm.core.profile import BlockRule
from vllm.settings.faults import Faults

SPARE_DIVISOR = 4
"""Prefix caching adds one block to so many that sequences need."""

_ALIGNMENT = 128
"""Positions. Kernels want lengths of contiguous lines to be multiples of it, so a multiple stays one."""

BLOCK_KV_KEYS = frozenset({"is_prefix_caching", "is_block_kv_layout", "chunked_prefill_config"})
"""Neuron keys that `kv_modes` settles, where their types are right."""


@dataclass(frozen=True, slots=True)
class KVModes:
    """What the KV cache is to do. asked: somebody said so, so that it must not silently stand back."""

    prefix_caching: bool
    chunked_prefill: bool
    asked: bool = True

    @property
    def block_kv(self) -> bool:
        return self.prefix_caching or self.chunked_prefill


def kv_modes(config: VllmConfig, override: Mapping[str, Any], default: bool, faults: Faults) -> KVModes:
    """Prefix caching and chunked prefill, from all that was said of them.

    default: what holds of each where nothing was said.
    """
    prefix, chunked = _asked_prefix_caching(config, override, faults), _asked_chunked_prefill(config, override, faults)
    layout = override.get("is_block_kv_layout")
    if layout is False:
        for name, asked in (("prefix caching", prefix), ("chunked prefill", chunked)):
            if asked:
                why, fix = f"{name} is asked for, which keeps KV in blocks", f"Leave it out, or ask for no {name}"
                faults.unreadable("is_block_kv_layout", False, why, fix)
        return KVModes(bool(prefix), bool(chunked))
    if prefix is None:
        prefix = _implied_prefix_caching(config, override, bool(chunked))
    if layout is True and not prefix and not chunked:
        if chunked is None:
            chunked = True
        else:
            why = "nothing reads a block KV cache without prefix caching or chunked prefill, and both are off"
            faults.unreadable("is_block_kv_layout", True, why, "Leave it out, or ask for one of them")
    asked = bool(prefix or chunked)
    return KVModes(default if prefix is None else prefix, default if chunked is None else chunked, asked)


def _asked_prefix_caching(config: VllmConfig, override: Mapping[str, Any], faults: Faults) -> bool | None:
    option, key = config.cache_config.enable_prefix_caching, override.get("is_prefix_caching")
    if option is not None and isinstance(key, bool) and option != key:
        fix = f"Leave it out, or give enable_prefix_caching={key}"
        faults.unreadable("is_prefix_caching", key, f"enable_prefix_caching is {option}", fix)
    return key if option is None and isinstance(key, bool) else option


def _implied_prefix_caching(config: VllmConfig, override: Mapping[str, Any], chunked: bool) -> bool | None:
    """What other settings say of prefix caching where nobody named it; None: nothing."""
    if override.get("prefix_buckets") or config.cache_config.offloads_kv:
        return True
    if chunked:
        return None
    if override.get("is_block_kv_layout") is True:
        return True
    size = config.cache_config.block_size or override.get("pa_block_size")
    longest = config.model_config.max_model_len or override.get("seq_len")
    return size < longest if isinstance(size, int) and isinstance(longest, int) else None


def _asked_chunked_prefill(config: VllmConfig, override: Mapping[str, Any], faults: Faults) -> bool | None:
    option = config.scheduler_config.enable_chunked_prefill
    if "chunked_prefill_config" in override:
        section = override["chunked_prefill_config"]
        if option is not None and option != (section is not None):
            fix = f"Leave it out, or give enable_chunked_prefill={section is not None}"
            faults.unreadable("chunked_prefill_config", section, f"enable_chunked_prefill is {option}", fix)
        return section is not None if option is None else option
    if option is None and envs.DISABLE_NEURON_CUSTOM_SCHEDULER:
        return True
    return option


def default_block_size(max_model_len: int, prefix_caching: bool, default: int) -> int:
    """`default`; for shorter sequences the sequence, or with prefix caching the next lower power of two."""
    if max_model_len > default:
        return default
    return 1 << max(max_model_len - 1, 1).bit_length() - 1 if prefix_caching else max_model_len


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Blocks of the KV cache. Contiguous: one block holds one sequence, and its id is the row."""

    block_size: int
    num_blocks: int


def even_blocks(
    block_size: int | None, num_blocks: int | None, max_model_len: int, multiple: int, faults: Faults
) -> tuple[int | None, int | None]:
    """Size and number of blocks where the target's are multiples of `multiple` tokens: longer, and as many fewer."""
    if block_size is None or block_size >= max_model_len or block_size % multiple == 0:
        return block_size, num_blocks
    longer = -(-block_size // multiple) * multiple
    faults.note(
        f"block_size={block_size}: this target keeps KV in blocks of a multiple of {multiple}, {longer} is used"
    )
    return longer, num_blocks and -(-num_blocks * block_size // longer)


def kv_layout(
    max_model_len: int,
    max_num_seqs: int,
    block_size: int | None,
    num_blocks: int | None,
    block_kv: bool,
    faults: Faults,
    *,
    prefix_caching: bool = False,
    default_size: int = BlockRule().default,
    max_blocks: int | None = None,
) -> KVLayout:
    """Block size and count for `max_num_seqs` whole sequences; given numbers must suffice for them.

    prefix_caching: blocks must be shorter than a sequence, and there are more of them, for prefixes that nobody uses,
    as far as `max_blocks` (what the memory allows) lets them be.
    """
    default = default_block_size(max_model_len, prefix_caching, default_size)
    size = block_size or (default if block_kv else max_model_len)
    if prefix_caching and size >= max_model_len > 1:
        why = f"prefix caching needs KV blocks shorter than max_model_len={max_model_len}"
        fix = f"Use {default}, or enable_prefix_caching=False"
        faults.add("block_size", size, why, fix, involves=["max_model_len"])
    if not block_kv and size != max_model_len:
        faults.note(
            f"block_size={size} has no effect without prefix caching and chunked prefill: a sequence lies in one block "
            f"of max_model_len={max_model_len} tokens"
        )
        size = max_model_len
    per_sequence = -(-max_model_len // size)
    needed = per_sequence * max_num_seqs
    count = num_blocks or needed
    if num_blocks is None and prefix_caching and per_sequence > 1:
        count += max(per_sequence, needed // SPARE_DIVISOR)
        count = max(needed, min(count, max_blocks or count))
    if count > needed and not block_kv:
        faults.note(
            f"num_gpu_blocks_override={count} has no effect beyond {needed}: without prefix caching and chunked "
            "prefill a sequence lies in one block"
        )
        count = needed
    if count < needed:
        why = f"{max_num_seqs} sequences of {max_model_len} tokens take {needed} blocks of {size}"
        fix = f"Use {needed}{' or more' if block_kv else ''}, or leave it out"
        faults.add("num_gpu_blocks_override", count, why, fix, involves=["max_model_len", "max_num_seqs"])
        count = needed
    return KVLayout(size, count)


def cached_positions(max_length: int, speculation_length: int) -> int:
    """Positions that sequences of `max_length` need where a step may write `speculation_length` beyond its first."""
    if not speculation_length:
        return max_length
    needed = max_length + speculation_length
    return -(-needed // _ALIGNMENT) * _ALIGNMENT if max_length % _ALIGNMENT == 0 else needed
