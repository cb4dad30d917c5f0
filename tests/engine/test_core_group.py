"""Several cores as one: requests go where the least work is, and a core that dies takes nobody else with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.neuron.driver import resolved_config
from vllm.core.contract import Capabilities
from vllm.core.outputs import EngineCoreOutput
from vllm.engine.client import CoreClient
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.engine.processes.core_client import ProcessClient
from vllm.engine.processes.core_group import CoreGroup
from vllm.exceptions import EngineDeadError
from vllm.sampling_params import SamplingParams


def request(req_id: str, num_prompt: int = 3, max_tokens: int = 4) -> EngineCoreRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return EngineCoreRequest(req_id, [5] * num_prompt, params.for_core())


class ScriptedCore:
    """Says what it is told to."""

    def __init__(self, target: str = "null") -> None:
        self.capabilities = Capabilities(target, frozenset(), 0)
        self.executor_stats: dict[str, Any] = {}
        self.dead_error: EngineDeadError | None = None
        self.asked: list[str] = []
        self.aborted: list[str] = []
        self.says: asyncio.Queue[StepOutput | EngineDeadError] = asyncio.Queue()

    def add_request(self, request: EngineCoreRequest) -> None:
        self.asked.append(request.req_id)

    def set_grammar_tokenizer(self, tokenizer: object) -> None:
        """It has no grammars."""

    def abort(self, req_ids: list[str]) -> None:
        self.aborted += req_ids

    async def call(self, method: str, *args: Any) -> Any:
        return [method, *args]

    def call_at_start(self, method: str) -> None:
        """Nothing is to be waited for."""

    async def receive(self) -> StepOutput:
        said = await self.says.get()
        if isinstance(said, EngineDeadError):
            self.dead_error = said
            raise said
        return said

    def check_health(self) -> None:
        if self.dead_error is not None:
            raise self.dead_error

    def shutdown(self) -> None:
        self.dead_error = self.dead_error or EngineDeadError("shut down")


def scripted(count: int) -> tuple[CoreGroup, list[ScriptedCore]]:
    cores = [ScriptedCore() for _ in range(count)]
    members: list[CoreClient] = list(cores)
    return CoreGroup(members), cores


async def test_equal_cores_take_turns_and_the_least_loaded_goes_first() -> None:
    group, cores = scripted(3)
    for i in range(6):
        group.add_request(request(f"r{i}"))
    assert [len(core.asked) for core in cores] == [2, 2, 2]
    group.add_request(request("long", 100))
    heavy = next(core for core in cores if "long" in core.asked)
    for i in range(20):
        group.add_request(request(f"s{i}"))
    assert len(heavy.asked) == 3, "the others are below it until they have as much"


async def test_work_is_counted_to_the_token_and_comes_to_nothing() -> None:
    rng = random.Random(0)
    group, cores = scripted(4)
    left: dict[str, int] = {}
    for i in range(200):
        left[f"r{i}"] = max_tokens = rng.randrange(1, 9)
        group.add_request(request(f"r{i}", rng.randrange(1, 50), max_tokens))
    while left:
        req_id = rng.choice(list(left))
        core = next(core for core in cores if req_id in core.asked)
        left[req_id] -= 1
        reason = "length" if not left[req_id] else None
        core.says.put_nowait(StepOutput([EngineCoreOutput(req_id, [7], finish_reason=reason)]))
        assert (await group.receive()).outputs[0].req_id == req_id
        if reason:
            del left[req_id]
    assert group.loads() == [0] * 4


async def test_an_abort_reaches_the_core_that_runs_it() -> None:
    group, cores = scripted(2)
    group.add_request(request("a"))
    group.add_request(request("b"))
    group.abort(["b", "unknown"])
    assert sorted(core.aborted for core in cores) == [[], ["b"]]


async def test_a_core_that_dies_ends_its_own_requests_by_an_error_that_may_be_retried() -> None:
    group, (one, other) = scripted(2)
    for i in range(4):
        group.add_request(request(f"r{i}"))
    one.says.put_nowait(EngineDeadError("killed"))
    step = await group.receive()
    assert sorted(output.req_id for output in step.outputs) == sorted(one.asked)
    assert all(output.finish_reason == "error" and "sent again" in str(output.error) for output in step.outputs)
    group.check_health()
    assert group.dead_error is None and group.loads() == [0, 14]
    group.add_request(request("late"))
    assert "late" in other.asked
    other.says.put_nowait(EngineDeadError("killed, too"))
    with pytest.raises(EngineDeadError, match="killed, too"):
        await group.receive()
    assert group.dead_error is not None
    for ask in (group.check_health, lambda: group.add_request(request("none"))):
        with pytest.raises(EngineDeadError):
            ask()


def test_cores_of_a_group_can_do_the_same() -> None:
    with pytest.raises(ValueError, match="at least one"):
        CoreGroup([])
    with pytest.raises(ValueError, match="the same"):
        CoreGroup([ScriptedCore("null"), ScriptedCore("cpu")])


@pytest.fixture
def processes(tiny_llama: Any) -> Iterator[CoreGroup]:
    config = resolved_config(tiny_llama, "null")
    group = CoreGroup([ProcessClient(config), ProcessClient(config)])
    yield group
    group.shutdown()


async def test_real_cores_answer_as_one_and_survive_one_anothers_death(processes: CoreGroup) -> None:
    texts: dict[str, list[int]] = {}
    ends: dict[str, str] = {}

    async def collect(req_ids: set[str]) -> None:
        while not req_ids <= ends.keys():
            for output in (await processes.receive()).outputs:
                texts.setdefault(output.req_id, []).extend(output.new_token_ids)
                if output.finish_reason:
                    ends[output.req_id] = output.finish_reason

    for i in range(4):
        processes.add_request(request(f"r{i}", max_tokens=8))
    await collect({f"r{i}" for i in range(4)})
    assert len({tuple(text) for text in texts.values()}) == 1 and set(ends.values()) == {"length"}
    call = asyncio.ensure_future(processes.call("check_integrity"))
    reading = asyncio.ensure_future(collect({"never"}))
    assert await call
    reading.cancel()
    first = processes._members[0].core
    assert isinstance(first, ProcessClient)
    first.handle.kill()
    processes.add_request(request("x", max_tokens=2))
    processes.add_request(request("y", max_tokens=2))
    await collect({"x", "y"})
    assert "length" in (ends["x"], ends["y"])
