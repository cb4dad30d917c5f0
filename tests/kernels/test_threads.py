"""How many threads there are and which processors they run on, on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm.targets.cpu.threads import choose_cpus

HYPERTHREADS = {
    f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)
}
V2 = {"proc/self/cgroup": "0::/box\n"}
V1 = {"proc/self/cgroup": "3:cpu,cpuacct:/box\n4:memory:/\n"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a root with these files, for a process that may use these processors."""

    def make(files: dict[str, str], allowed: set[int] = frozenset(range(8)), binding: str = "auto") -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", binding)
        return tmp_path

    return make


def test_one_thread_a_core(machine):
    root = machine(HYPERTHREADS)
    assert choose_cpus(root=root) == [0, 1, 2, 3]
    assert choose_cpus(6, root) == [0, 1, 2, 3, 4, 5]
    assert choose_cpus(9, root) == [-1] * 9


def test_without_a_topology_every_processor_is_a_core(machine):
    assert choose_cpus(root=machine({})) == list(range(8))


def test_the_affinity_mask_bounds(machine):
    assert choose_cpus(root=machine(HYPERTHREADS, {1, 5, 6})) == [1, 6]
    assert choose_cpus(root=machine(HYPERTHREADS, {7})) == [7]


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({**V2, "sys/fs/cgroup/box/cpu.max": "max 100000"}, 4),
        ({**V2, "sys/fs/cgroup/box/cpu.max": "200000 100000"}, 2),
        ({**V2, "sys/fs/cgroup/box/cpu.max": "150000 100000"}, 2),
        ({**V2, "sys/fs/cgroup/box/cpu.max": "10000 100000"}, 1),
        ({**V2, "sys/fs/cgroup/box/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({**V2, "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 4),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "90000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}, 2),
    ],
)
def test_the_control_groups_quota_bounds(machine, files, threads):
    assert len(choose_cpus(root=machine({**HYPERTHREADS, **files}))) == threads


def test_bindings(machine):
    assert choose_cpus(root=machine(HYPERTHREADS, binding="nobind")) == [-1] * 4
    assert choose_cpus(root=machine(HYPERTHREADS, binding="1-2,7")) == [1, 2, 7]
    assert choose_cpus(2, machine(HYPERTHREADS, binding="1-2,7")) == [1, 2]
    assert choose_cpus(root=machine(HYPERTHREADS, binding=" ")) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("9", r"names processors \[9\]"),
        ("0,0", "each processor once"),
        ("a-b", "is not understood"),
        ("3-1", "each processor"),
    ],
)
def test_bindings_that_cannot_be(machine, binding, message):
    with pytest.raises(ValueError, match=message):
        choose_cpus(root=machine(HYPERTHREADS, binding=binding))


def test_no_threads_are_refused(machine):
    with pytest.raises(ValueError, match="at least one thread, got 0"):
        choose_cpus(0, machine({}))
