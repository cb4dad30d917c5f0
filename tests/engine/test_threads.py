"""Whatever thread fails, in the engine's process or in front of it: requests are told, health says so, or the loss is
logged and nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.neuron.driver import resolved_config
from tests.waiting import PATIENCE, wait_until
from vllm.core.contract import SchedulerOutput
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.core.lane import StepLane
from vllm.engine.processes.core_client import ProcessClient
from vllm.engine.structured_outputs import manager
from vllm.exceptions import EngineDeadError
from vllm.kv.files import KVFiles
from vllm.sampling_params import SamplingParams

FAULTS = Path(__file__).parent / "faults"


class Panic(BaseException):
    """What a native library's panic is in Python: no Exception."""


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells the engine's processes, which start with this, to fail."""
    monkeypatch.setenv("FAULT_FILE", str(tmp_path / "fault"))
    monkeypatch.setenv("PYTHONPATH", f"{FAULTS}:{FAULTS.parents[2]}")
    return tmp_path / "fault"


@pytest.fixture
def client(fault: Path, tiny_llama: Path) -> Iterator[ProcessClient]:
    client = ProcessClient(resolved_config(tiny_llama, "null"))
    yield client
    client.shutdown()


async def dies(client: ProcessClient) -> str:
    """The cause that is told, in time."""
    with pytest.raises(EngineDeadError) as caught:
        while True:
            await asyncio.wait_for(client.receive(), PATIENCE)
    with pytest.raises(EngineDeadError):
        client.check_health()
    assert client.handle.process.wait(PATIENCE) != 0
    return str(caught.value)


async def test_the_heartbeat_fails(client: ProcessClient, fault: Path) -> None:
    fault.write_text("heartbeat")
    assert "ended with code 1" in await dies(client)


async def test_the_watch_over_the_parent_fails(client: ProcessClient, fault: Path) -> None:
    """The engine would outlive its parent."""
    fault.write_text("parent-watch")
    assert client.handle.process.stdin is not None
    client.handle.process.stdin.write(b"x")
    client.handle.process.stdin.flush()
    assert "ended with code 1" in await dies(client)


async def test_the_watch_over_the_engine_fails(client: ProcessClient) -> None:
    client._silence = None  # type: ignore[assignment]
    assert "cannot be watched" in await dies(client)


async def test_the_reader_of_outputs_fails(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "20")
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny_llama), device="null", max_model_len=64))
    try:
        params = SamplingParams(max_tokens=60, ignore_eos=True)
        streams = [engine.generate({"prompt_token_ids": [5]}, params, f"r{i}") for i in range(3)]
        for stream in streams:
            await anext(stream)
        monkeypatch.setattr(engine.metrics, "record_step", lambda step: 1 / 0)
        for stream in streams:
            with pytest.raises(EngineDeadError, match="outputs of the engine cannot be read"):
                async for _ in stream:
                    pass
        assert engine.errored
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await anext(engine.generate({"prompt_token_ids": [5]}, params, "late"))
    finally:
        engine.shutdown()


def test_the_grammar_thread_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request that has a grammar is told, and a start does not wait for ever."""

    class Tokenizer:
        def build(self) -> Any:
            raise Panic("out of bounds")

    compiler = manager._Compiler(Tokenizer())  # type: ignore[arg-type]
    assert compiler.built.wait(PATIENCE)
    assert "out of bounds" in str(compiler.submit("a").exception(5))
    compiler.close()


def test_a_grammar_that_panics_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def build(self) -> str:
            return "built"

    def compile(grammar: str, tokenizer: Any) -> Any:
        if grammar == "bad":
            raise Panic("out of bounds")
        return grammar

    monkeypatch.setattr(manager, "_compile", compile)
    compiler = manager._Compiler(Tokenizer())  # type: ignore[arg-type]
    assert "out of bounds" in str(compiler.submit("bad").exception(5))
    assert compiler.submit("good").result(PATIENCE) == "good"  # type: ignore[comparison-overlap]
    compiler.close()


def test_the_writer_of_kv_files_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks are forgotten, and logged; nobody waits for them."""
    files = KVFiles(tmp_path, "id", 8, 10**6)
    whole = files._make_room
    monkeypatch.setattr(files, "_make_room", lambda: 1 / 0)
    files.save(b"a" * 32, np.zeros(8, np.uint8))
    wait_until(lambda: files.take_forgotten() == [b"a" * 32])
    files.clear()
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(files, "_make_room", whole)
    files.save(b"b" * 32, np.ones(8, np.uint8))
    files.start(1, b"b" * 32, np.zeros(8, np.uint8))
    files.close()
    assert files.hashes() == [b"b" * 32] and files.poll() == {1: True}


def test_the_device_thread_fails() -> None:
    """Its step's taker is told."""

    class Executor:
        def execute(self, scheduled: SchedulerOutput) -> Any:
            raise Panic("lost")

    lane = StepLane(Executor(), depth=2)  # type: ignore[arg-type]
    lane.submit(SchedulerOutput())
    with pytest.raises(Panic):
        lane.take()
    lane.close()
