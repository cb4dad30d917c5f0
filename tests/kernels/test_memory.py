"""Memory is reckoned before anything is read: exactly, against a machine of files, and too little is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.neuron.configs import build
from tests.tiny import make_checkpoint
from vllm.checkpoint import open_checkpoint
from vllm.config import VllmConfig
from vllm.runner.model_loader import load_model
from vllm.settings.kv_dtype import kv_token_bytes
from vllm.settings.resolve import resolve
from vllm.targets.cpu import memory, model
from vllm.targets.cpu.memory import InsufficientMemory, MachineMemory, check_memory, machine_memory
from vllm.targets.cpu.model import CpuDeviceModel, cache_shape, kv_dtype
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.ops import NativeModel, memory_needed
from vllm.targets.cpu.packing import lay_out, pack
from vllm.targets.cpu.plan import plan

GIB = 2**30
MEMINFO = {"proc/meminfo": f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {6 * 2**20} kB\n"}
V2 = {"proc/self/cgroup": "0::/pod/box\n"}
V1 = {"proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n0::/\n"}

MACHINES = [
    ({}, (8, 6)),
    ({**V2, "sys/fs/cgroup/pod/box/memory.max": "max\n"}, (8, 6)),
    (
        {**V2, "sys/fs/cgroup/pod/box/memory.max": f"{4 * GIB}", "sys/fs/cgroup/pod/box/memory.current": f"{GIB}"},
        (4, 3),
    ),
    (
        {
            **V2,
            "sys/fs/cgroup/pod/box/memory.max": f"{4 * GIB}",
            "sys/fs/cgroup/pod/box/memory.current": f"{3 * GIB}",
            "sys/fs/cgroup/pod/box/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
        },
        (4, 3),
    ),
    (
        {
            **V2,
            "sys/fs/cgroup/pod/box/memory.max": f"{4 * GIB}",
            "sys/fs/cgroup/pod/box/memory.current": "0",
            "sys/fs/cgroup/pod/memory.max": f"{5 * GIB}",
            "sys/fs/cgroup/pod/memory.current": f"{4 * GIB}",
        },
        (4, 1),
    ),
    ({**V2, "sys/fs/cgroup/memory.max": f"{2 * GIB}", "sys/fs/cgroup/memory.current": f"{GIB}"}, (2, 1)),
    (
        {
            **V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}",
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}\n",
        },
        (3, 2),
    ),
    ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, (8, 6)),
]


@pytest.mark.parametrize(("files", "expected"), MACHINES)
def test_what_the_machine_grants(tmp_path: Path, files: dict[str, str], expected: tuple[int, int]) -> None:
    for name, text in {**MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = machine_memory(tmp_path)
    assert (found.total // GIB, found.available // GIB) == expected


def test_this_machine_grants_something() -> None:
    found = machine_memory()
    assert 0 < found.available <= found.total


@pytest.mark.parametrize("scheme", ["f32", "bf16", "int8", "f8", "q4_min"])
@pytest.mark.parametrize("kv", ["bfloat16", "fp8", "int8"])
def test_the_reckoning_is_what_is_taken(tmp_path: Path, scheme: str, kv: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    graph = build_graph(checkpoint.config)
    config = resolve(
        build(hf_config=checkpoint.config, max_model_len=64, max_num_seqs=3, kv_cache_dtype=kv, device="cpu")
    )
    shape = {**graph.shape, **cache_shape(config)}
    programs = [plan(graph, 64, 8), plan(graph, 3, 3)]
    needed = memory_needed(lay_out(graph, checkpoint, scheme), programs, **shape)

    index = pack(graph, checkpoint, scheme, tmp_path / "weights.bin")
    native = NativeModel(tmp_path / "weights.bin", index, **shape)
    for program in programs:
        native.add_program(program)
    assert needed == native.memory()
    assert needed["weights"] == (tmp_path / "weights.bin").stat().st_size
    num_slots = shape["num_blocks"] * shape["block_size"]
    assert needed["kv_cache"] == num_slots * kv_token_bytes(checkpoint.config, kv, "bfloat16")


def needs(kv: int) -> dict[str, int]:
    return {"weights": GIB, "kv_cache": kv, "arena": GIB // 4}


def config(**options: object) -> VllmConfig:
    return resolve(build(max_num_seqs=8, device="cpu", **options))


def test_enough_is_said_and_too_little_refused() -> None:
    check_memory(config(), needs(2 * GIB), MachineMemory(8 * GIB, 4 * GIB))
    with pytest.raises(InsufficientMemory) as error:
        check_memory(config(), needs(4 * GIB), MachineMemory(8 * GIB, 3 * GIB + GIB // 4))
    text = str(error.value)
    assert "needs 5.25 GiB (weights 1.00 GiB, kv cache 4.00 GiB, arena 256 MiB)" in text
    assert "3.25 GiB of 8.00 GiB are available" in text
    assert "max_num_seqs=4 instead of 8" in text
    assert "max_model_len=512 instead of 1024" in text
    assert "kv_cache_dtype=fp8" in text
    assert "quantization_dtype" in text


def test_advice_names_only_what_helps() -> None:
    quantised = config(kv_cache_dtype="int8", override_neuron_config={"quantized": True, "quantization_dtype": "int4"})
    with pytest.raises(InsufficientMemory) as error:
        check_memory(quantised, needs(4 * GIB), MachineMemory(2 * GIB, GIB))
    for way in ("max_num_seqs=", "max_model_len=", "kv_cache_dtype", "quantization_dtype"):
        assert way not in str(error.value)
    assert "more memory" in str(error.value)


def test_a_share_of_the_machine_is_a_bound_too() -> None:
    half = config(gpu_memory_utilization=0.5)
    check_memory(half, needs(2 * GIB), MachineMemory(8 * GIB, 8 * GIB))
    with pytest.raises(InsufficientMemory, match=r"gpu_memory_utilization=0.5 of 8.00 GiB is 4.00 GiB"):
        check_memory(half, needs(3 * GIB), MachineMemory(8 * GIB, 8 * GIB))


def test_nothing_is_compiled_that_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_checkpoint(tmp_path)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    hf_config = open_checkpoint(directory).config
    options = {"model": str(directory), "hf_config": hf_config, "max_model_len": 64, "device": "cpu"}
    small = resolve(build(**options, max_num_seqs=2))
    large = resolve(build(**options, max_num_seqs=100))
    monkeypatch.setattr(memory, "machine_memory", lambda: MachineMemory(2**30, 2 * 2**20))
    monkeypatch.setattr(model, "COMPILE_BYTES", 0)
    monkeypatch.setattr(model, "pack", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InsufficientMemory, match="max_num_seqs="):
        load_model(large)
    monkeypatch.undo()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    device, _ = load_model(small)
    device.shutdown()
    monkeypatch.setattr(memory, "machine_memory", lambda: MachineMemory(2**30, 1))
    monkeypatch.setattr(model, "NativeModel", lambda *_, **__: pytest.fail("weights were mapped"))
    with pytest.raises(InsufficientMemory):
        load_model(small)


def test_a_bound_of_the_kv_cache_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.001")
    with pytest.raises(ValueError, match="VLLM_CPU_KVCACHE_SPACE"):
        config()
    assert resolve(build(device="null")).cache_config.kv_cache_memory_bytes is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert config().cache_config.kv_cache_memory_bytes == 4 * GIB
    assert config(kv_cache_memory_bytes=2 * GIB).cache_config.kv_cache_memory_bytes == 2 * GIB
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "-1")
    with pytest.raises(ValueError, match="a number of GiB, 0 or more"):
        config()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32", "fp8", "fp8_e4m3", "int8"])
def test_every_kv_type_has_a_native_one(dtype: str) -> None:
    expected = {"auto": "bf16", "bfloat16": "bf16", "float32": "f32", "fp8": "f8", "fp8_e4m3": "f8", "int8": "int8"}
    assert kv_dtype(config(kv_cache_dtype=dtype)) == expected[dtype]
    assert isinstance(CpuDeviceModel.artifact_key(config(kv_cache_dtype=dtype))["kv_dtype"], str)
