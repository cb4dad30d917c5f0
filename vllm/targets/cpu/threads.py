"""Which processors the native core's threads run on: those of the affinity mask, one a core, within the quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

from vllm import envs
from vllm.targets.cpu.control_groups import ControlGroup, control_groups


def choose_cpus(num_threads: int | None = None, root: Path = Path("/")) -> list[int]:
    """The processor of each thread, -1 for a thread that is not bound.

    num_threads: how many; None: as many as there are cores to use. VLLM_CPU_OMP_THREADS_BIND may name the processors.
    root: where proc and sys lie.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"the cpu target needs at least one thread, got {num_threads}")
    binding = envs.VLLM_CPU_OMP_THREADS_BIND.strip() or "auto"
    allowed = sorted(os.sched_getaffinity(0))
    if binding not in ("auto", "nobind"):
        named = _parse(binding)
        if unknown := sorted(set(named) - set(allowed)):
            raise ValueError(
                f"VLLM_CPU_OMP_THREADS_BIND={binding!r} names processors {unknown}; this process may use {allowed}"
            )
        return named[:num_threads]
    cores = _one_a_core(allowed, root)
    if num_threads is None:
        num_threads = max(min(len(cores), _quota(root)), 1)
    if binding == "nobind" or num_threads > len(allowed):
        return [-1] * num_threads
    return (cores + [cpu for cpu in allowed if cpu not in cores])[:num_threads]


def _parse(text: str) -> list[int]:
    cpus: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ValueError(
            f"VLLM_CPU_OMP_THREADS_BIND={text!r} is not understood; use auto, nobind or a list such as 0-3,8"
        ) from None
    if not cpus or len(set(cpus)) != len(cpus):
        raise ValueError(f"VLLM_CPU_OMP_THREADS_BIND={text!r} must name each processor once")
    return cpus


def _one_a_core(cpus: list[int], root: Path) -> list[int]:
    """The first of each set of logical processors that share a core."""
    chosen, seen = [], set()
    for cpu in cpus:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        core = path.read_text().strip() if path.is_file() else str(cpu)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    return chosen


def _quota(root: Path) -> int:
    """Whole processors that the control groups grant, parts counting as one; a large number if none sets a limit."""
    granted = [
        math.ceil(quota / period)
        for group in control_groups("cpu", root)
        for quota, period in [_bandwidth(group)]
        if quota > 0 and period > 0
    ]
    return min(granted, default=1 << 16)


def _bandwidth(group: ControlGroup) -> tuple[int, int]:
    """Microseconds of processor time granted, and in how many; (0, 0) without a limit."""
    names = ["cpu.max"] if group.version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    files = [group.directory / name for name in names]
    words = " ".join(file.read_text() for file in files if file.is_file()).split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdigit() else (0, 0)
