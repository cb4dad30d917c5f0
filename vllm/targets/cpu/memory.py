"""Memory that a model takes, held against what the machine grants, before any weight is read.

What it takes is exact: packed weights (mapped, shared by all processes that load them), the KV cache, and the arena
(buffers and scratch of the programs). What the machine grants is the least of the kernel's MemAvailable and, in every
memory control group above this process (v1 or v2), the limit less what is used and cannot be reclaimed; and
`gpu_memory_utilization` of the whole, which is the least limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm.config import VllmConfig
from vllm.exceptions import VLLMError
from vllm.logger import init_logger
from vllm.sizes import GIB, MIB
from vllm.targets.cpu.control_groups import control_groups

logger = init_logger(__name__)

COMPILE_BYTES = 256 * MIB
"""What packing holds at once: pieces of a matrix as floats and as codes, a write buffer, and the process itself."""

_NO_LIMIT = 1 << 60
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""By version: files of the limit and of what is used, and memory.stat's entry of what can be reclaimed."""


class InsufficientMemory(VLLMError, ValueError):
    """The model does not fit into the memory that there is."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes. total: of the machine or the tightest control group. available: what more can be used of it now."""

    total: int
    available: int


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """What there is for this process. root: where proc and sys lie."""
    fields = _fields(root / "proc/meminfo")
    total, available = 1024 * fields["MemTotal:"], 1024 * fields.get("MemAvailable:", fields["MemTotal:"])
    for limit, used in _limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return MachineMemory(total, available)


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit, and use less what can be reclaimed, of every control group that has a limit."""
    for version, directory in control_groups("memory", root):
        limit_name, used_name, reclaimable = _FILES[version]
        limit = _number(directory / limit_name)
        if limit < _NO_LIMIT:
            statistics = directory / "memory.stat"
            cache = _fields(statistics).get(reclaimable, 0) if statistics.is_file() else 0
            yield limit, max(_number(directory / used_name) - cache, 0)


def _number(file: Path) -> int:
    """The number in a file; no limit where there is none."""
    text = file.read_text().strip() if file.is_file() else "max"
    return int(text) if text.isdigit() else _NO_LIMIT


def check_memory(config: VllmConfig, needs: Mapping[str, int], memory: MachineMemory | None = None) -> None:
    """Log what is needed, bytes by kind, and what there is. Raises InsufficientMemory, saying what to change."""
    memory = memory or machine_memory()
    share = config.cache_config.gpu_memory_utilization
    needed, granted = sum(needs.values()), int(share * memory.total)
    parts = ", ".join(f"{kind.replace('_', ' ')} {gib(size)}" for kind, size in needs.items() if size)
    logger.info("cpu: needs %s (%s); %s of %s available", gib(needed), parts, gib(memory.available), gib(memory.total))
    if needed > memory.available:
        raise InsufficientMemory(
            f"the model needs {gib(needed)} ({parts}), and {gib(memory.available)} of {gib(memory.total)} are "
            f"available. {advice(config, needs, memory.available)}"
        )
    if needed > granted:
        raise InsufficientMemory(
            f"the model needs {gib(needed)} ({parts}), and gpu_memory_utilization={share} of {gib(memory.total)} is "
            f"{gib(granted)}. Raise it, or: {advice(config, needs, granted)}"
        )


def advice(config: VllmConfig, needs: Mapping[str, int], limit: int) -> str:
    """What would make it fit, in the order of how little it costs."""
    rows, length = config.scheduler_config.max_num_seqs or 1, config.model_config.max_len
    kv, ways = needs.get("kv_cache", 0), []
    room = limit - (sum(needs.values()) - kv)
    if kv and room > 0:
        if fitting := rows * room // kv:
            ways.append(f"max_num_seqs={fitting} instead of {rows}")
        if (shorter := length * room // kv) >= 16:
            ways.append(f"max_model_len={shorter} instead of {length}")
    if kv and config.cache_config.kv_cache_dtype not in ("fp8", "int8"):
        ways.append("kv_cache_dtype=fp8 or int8 (half the KV of bfloat16)")
    if config.program_config.quantization is None:
        ways.append(
            'override_neuron_config={"quantized": true, "quantization_dtype": "int8" or "int4"} for smaller weights'
        )
    ways.append("more memory")
    return f"What helps: {'; '.join(ways)}"


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
