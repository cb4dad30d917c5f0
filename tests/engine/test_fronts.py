"""Several fronts before one core: each hears of its own requests alone, and what they count together is exact."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.engines import engine_args
from tests.neuron.driver import resolved_config
from tests.waiting import PATIENCE
from vllm.config import SchedulerConfig
from vllm.core.outputs import EngineCoreOutput, SchedulerStats
from vllm.engine.admission import SharedDoor
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.engine.place import RECORDER, Place
from vllm.engine.processes.core_client import InprocClient, ProcessClient
from vllm.engine.processes.front_table import Column, FrontTable
from vllm.engine.processes.fronts import Attachment, shares
from vllm.exceptions import EngineDeadError, QueueFullError
from vllm.sampling_params import SamplingParams


class Group:
    """Fronts in this process before a core in a child; `owner` is the connection of the one whose child it is."""

    def __init__(self, config, count: int, directory: Path) -> None:
        self.obituary: str | None = None
        self.table = FrontTable(directory / "table", count)
        addresses = [f"ipc://{directory}/{index}" for index in range(count)]
        attachments = [
            Attachment(Place(index, count), self.table, address, lambda: self.obituary)
            for index, address in enumerate(addresses)
        ]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            owner = pool.submit(ProcessClient, config, None, addresses)
            fronts = [pool.submit(AsyncLLM, config, attachment=attachment) for attachment in attachments]
            self.owner, self.fronts = owner.result(), [front.result() for front in fronts]

    def close(self) -> None:
        for each in (*self.fronts, self.owner):
            each.shutdown()


@contextlib.contextmanager
def group_of(config, count: int) -> Iterator[Group]:
    with tempfile.TemporaryDirectory() as directory:
        group = Group(config, count, Path(directory))
        try:
            yield group
        finally:
            group.close()


@pytest.fixture(scope="module")
def config(tiny_llama):
    return resolved_config(tiny_llama, "null")


async def generated(front: AsyncLLM, prompt: list[int], req_id: str, **params) -> list[int]:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **params})
    outputs = [output async for output in front.generate({"prompt_token_ids": prompt}, sampling, req_id)]
    return list(outputs[-1].outputs[0].token_ids)


def alone(config, prompt: list[int]) -> list[int]:
    client, tokens = InprocClient(config), []
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    client.add_request(EngineCoreRequest("r", prompt, params.for_core()))
    while client.core.has_work:
        for output in client.step().outputs:
            tokens += output.new_token_ids
    return tokens


def total(front: AsyncLLM, name: str) -> float:
    return sum(metric.value for metric in front.get_metrics() if metric.name == name)


async def test_fronts_share_a_core_and_nothing_else(config):
    """The same ids on each: every front gets the tokens of its own request; without a seed, of its own seed."""
    with group_of(config, 3) as group:
        prompts = {(i, j): [3 + i, 40 + j, 7] for i in range(3) for j in range(5)}
        tasks = {key: generated(group.fronts[key[0]], prompt, f"r{key[1]}") for key, prompt in prompts.items()}
        answers = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        assert answers == {key: alone(config, prompt) for key, prompt in prompts.items()}
        assert [total(front, "vllm:generation_tokens") for front in group.fronts] == [40, 40, 40]
        assert group.table.total(Column.GENERATED_TOKENS) == 120
        steps = [sum(m.count for m in f.get_metrics() if m.name == "vllm:iteration_tokens_total") for f in group.fronts]
        assert steps[RECORDER] > 0 and sum(steps) == steps[RECORDER], "a step is recorded once"
        assert await group.fronts[1]._call("check_integrity") and await group.fronts[2].reset_prefix_cache()
        asked = [generated(front, [5, 6, 7], "r", temperature=1.0) for front in group.fronts]
        assert len(set(map(tuple, await asyncio.gather(*asked)))) == 3


async def test_front_that_leaves_frees_what_it_held(config, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "20")
    with group_of(config, 2) as group:
        stays, leaves = group.fronts
        running = [asyncio.create_task(generated(leaves, [5, 6], f"r{i}", max_tokens=60)) for i in range(6)]
        kept = asyncio.create_task(generated(stays, [5, 6, 7], "kept"))
        while total(stays, "vllm:num_requests_running") < 2:
            await asyncio.sleep(0.01)
        group.owner.leave(1)
        assert await kept == alone(config, [5, 6, 7])
        while total(stays, "vllm:num_requests_running") or total(stays, "vllm:num_requests_waiting"):
            await asyncio.sleep(0.01)
        assert await stays._call("check_integrity")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def health(front: Any) -> str:
    """What is wrong with the engine; "" if nothing is."""
    try:
        await front.check_health()
    except EngineDeadError as error:
        return str(error)
    return ""


async def test_every_front_hears_of_the_cores_silence_and_of_its_end(config, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "20")
    with group_of(config, 2) as group:
        running = [asyncio.create_task(generated(front, [5, 6], "r", max_tokens=60)) for front in group.fronts]
        while total(group.fronts[0], "vllm:num_requests_running") < 2:
            await asyncio.sleep(0.01)
        os.kill(group.owner.handle.process.pid, signal.SIGSTOP)
        for front in group.fronts:
            while "no life" not in await health(front):
                await asyncio.sleep(0.01)
        os.kill(group.owner.handle.process.pid, signal.SIGKILL)
        while group.owner.dead_error is None:
            await asyncio.sleep(0.01)
        group.obituary = str(group.owner.dead_error)
        ends = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), PATIENCE)
        assert all(isinstance(end, EngineDeadError) and "signal 9" in str(end) for end in ends)
        for front in group.fronts:
            with pytest.raises(EngineDeadError, match="signal 9"):
                await front.check_health()


async def test_bounds_of_the_queue_hold_over_all_fronts(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "20")
    config = engine_args(tiny_llama, max_num_seqs=2, max_num_queued_reqs=3).create_engine_config()
    with group_of(config, 3) as group:
        asked = [generated(group.fronts[i % 3], [5, 6], f"r{i}", max_tokens=30) for i in range(12)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(end, QueueFullError) for end in ends) == 7, "two run, three wait"
        assert group.table.total(Column.REQUESTS) == group.table.total(Column.WAITING_TOKENS) == 0
        assert sum(total(front, "vllm:admission_rejections") for front in group.fronts) == 7


def test_each_output_reaches_its_own_front():
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randrange(2, 6)
        asked = [(rng.randrange(count), f"a:{n}") for n in range(rng.randrange(8))]
        outputs = [EngineCoreOutput(name, [1], front=front) for front, name in asked]
        step = StepOutput(outputs, SchedulerStats(num_running=3), num_tokens=7)
        told = dict(shares(step, count))
        heard = [(front, output.req_id) for front, share in told.items() for output in share.outputs]
        assert sorted(heard) == sorted(asked)
        assert told[RECORDER].stats == step.stats and told[RECORDER].num_tokens == 7
        assert all(share.stats is None and not share.num_tokens for front, share in told.items() if front != RECORDER)
        assert all(share.outputs for front, share in told.items() if front != RECORDER)


def test_no_two_fronts_number_a_request_alike():
    places = [Place(index, 5) for index in range(5)]
    assert sorted(place.numbered(nth) for place in places for nth in range(20)) == list(range(100))
    assert Place().core_id("r") == "r" and [Place().numbered(nth) for nth in range(3)] == [0, 1, 2]


class TestTable:
    def test_rows_are_apart_and_seen_by_all(self, tmp_path):
        mine, theirs = FrontTable(tmp_path / "t", 3), FrontTable(tmp_path / "t", 3)
        expected = {(front, column): 10 * front + column - 5 for front in range(3) for column in Column}
        for (front, column), value in expected.items():
            mine.set(front, column, value)
        for column in Column:
            assert theirs.column(column) == [expected[front, column] for front in range(3)]
        theirs.add(1, Column.LOAD, 2**40)
        assert mine.total(Column.LOAD) == 2**40 + sum(expected[front, Column.LOAD] for front in range(3))
        assert not mine.draining
        theirs.drain()
        assert mine.draining

    def test_what_is_gone_holds_nothing_and_has_counted(self, tmp_path):
        table = FrontTable(tmp_path / "t", 2)
        for column in Column:
            table.set(1, column, 7)
        table.clear(1)
        left = {column.name for column in Column if table.total(column)}
        assert left == {"ENGINE", "BEATS", "PROMPT_TOKENS", "GENERATED_TOKENS"}

    def test_no_process_lets_in_one_too_many(self, tmp_path):
        """Four processes at the door at once, again and again: each time exactly as many get in as there is room."""
        table = FrontTable(tmp_path / "t", 4)
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(5)
        workers = [context.Process(target=_crowd, args=(tmp_path / "t", index, barrier)) for index in range(4)]
        for worker in workers:
            worker.start()
        for _ in range(ROUNDS):
            barrier.wait(PATIENCE)
            barrier.wait(PATIENCE)
            assert table.total(Column.REQUESTS) == ROOM
            assert table.total(Column.WAITING_TOKENS) == 10 * ROOM
            barrier.wait(PATIENCE)
        for worker in workers:
            worker.join(10)

    def test_lock_of_a_process_that_dies_is_free(self, tmp_path):
        table = FrontTable(tmp_path / "t", 1)
        child = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "t",))
        child.start()
        while not table.draining:
            threading.Event().wait(0.01)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with table.locked():
            child.join(10)


ROUNDS, ROOM = 20, 30


def _crowd(path: Path, index: int, barrier) -> None:
    table = FrontTable(path, 4)
    limits = SchedulerConfig(max_num_seqs=8, max_num_queued_reqs=ROOM - 8)
    outputs = SimpleNamespace(num_core_requests=0, num_waiting_tokens=0)
    door = SharedDoor(limits, outputs, Attachment(Place(index, 4), table, "", lambda: None))
    for _ in range(ROUNDS):
        door.publish()
        barrier.wait(PATIENCE)
        for _ in range(ROOM):
            door.admit(1, 10)
        barrier.wait(PATIENCE)
        barrier.wait(PATIENCE)


def _hold(path: Path) -> None:
    table = FrontTable(path, 1)
    with table.locked():
        table.drain()
        signal.pause()
