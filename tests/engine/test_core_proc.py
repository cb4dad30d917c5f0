"""The engine in its own process: what it answers, what it survives, and how its end is noticed."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import stat
import time

import pytest
import zmq

from tests.checkpoint.test_forms import edit
from tests.neuron.driver import resolved_config
from tests.tiny import make_checkpoint
from tests.waiting import PATIENCE, wait_until
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.processes import core_client
from vllm.engine.processes.core_client import InprocClient, ProcessClient
from vllm.exceptions import EngineDeadError
from vllm.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def config(tiny_llama):
    return resolved_config(tiny_llama, "null")


@pytest.fixture
def client(config):
    client = ProcessClient(config)
    yield client
    client.shutdown()


def _request(req_id: str, prompt: list[int], max_tokens: int = 8) -> EngineCoreRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return EngineCoreRequest(req_id, prompt, params.for_core())


async def _collect(client: ProcessClient, req_ids: set[str]) -> dict[str, tuple[list[int], str | None]]:
    tokens: dict[str, list[int]] = {req_id: [] for req_id in req_ids}
    ended: dict[str, str | None] = {}
    while ended.keys() != req_ids:
        for output in (await asyncio.wait_for(client.receive(), PATIENCE)).outputs:
            tokens[output.req_id] += output.new_token_ids
            if output.finished:
                ended[output.req_id] = output.finish_reason
    return {req_id: (tokens[req_id], ended[req_id]) for req_id in req_ids}


def _inproc_tokens(config, request: EngineCoreRequest) -> list[int]:
    client, tokens = InprocClient(config), []
    client.add_request(request)
    while client.core.has_work:
        for output in client.step().outputs:
            tokens += output.new_token_ids
    return tokens


async def test_tokens_equal_those_of_an_engine_in_this_process(client, config):
    requests = [_request(f"r{i}", [5 + i, 6, 7]) for i in range(6)]
    for request in requests:
        client.add_request(request)
    collected = await _collect(client, {request.req_id for request in requests})
    for request in requests:
        assert collected[request.req_id] == (_inproc_tokens(config, request), "length")


async def test_a_request_that_can_never_run_ends_alone(client):
    client.add_request(_request("long", list(range(3, 100))))
    client.add_request(_request("good", [4, 5]))
    collected = await _collect(client, {"long", "good"})
    assert collected["long"] == ([], "error")
    assert collected["good"][1] == "length"


async def test_abort_frees_the_row(client):
    client.add_request(_request("a", [4, 5], max_tokens=62))
    client.abort(["a", "never heard of"])
    assert (await _collect(client, {"a"}))["a"][1] in ("abort", "length")
    assert await _call(client, "check_integrity")


async def test_foreign_bytes_on_the_sockets_are_dropped(client):
    client._input.send(pickle.dumps({"run": "this"}))
    client._input.send(b"\x00garbage")
    with zmq.Context() as context:
        for name in ("out", "beat"):
            with context.socket(zmq.PUSH) as foreign:
                foreign.connect(f"ipc://{client._directory.path}/core.{name}")
                foreign.send(pickle.dumps({"run": "this"}))
    client.add_request(_request("good", [4, 5]))
    assert (await _collect(client, {"good"}))["good"][1] == "length"


def test_the_sockets_are_private(client):
    directory = client._directory.path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    client.shutdown()
    assert not directory.exists()


async def test_calls_are_answered_and_unknown_ones_refused(client):
    assert await _call(client, "reset_prefix_cache") is True
    assert (await _call(client, "executor_stats"))["target"] == "null"
    with pytest.raises(RuntimeError, match="unknown call 'shutdown'"):
        await _call(client, "shutdown")


async def _call(client: ProcessClient, method: str):
    call = asyncio.create_task(client.call(method))
    while not call.done():
        receive = asyncio.create_task(client.receive())
        await asyncio.wait({call, receive}, return_when=asyncio.FIRST_COMPLETED)
        receive.cancel()
    return await call


async def test_a_killed_child_is_noticed_and_said(client):
    os.kill(client.handle.process.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="killed by signal 9"):
        while True:
            await asyncio.wait_for(client.receive(), PATIENCE)
    with pytest.raises(EngineDeadError):
        client.check_health()
    with pytest.raises(EngineDeadError):
        client.add_request(_request("late", [4]))


def test_what_is_sent_to_a_killed_child_is_refused(client):
    """Also while its end has not been noticed, when there is nobody to send to."""
    client.handle.process.kill()
    client.handle.process.wait()
    with pytest.raises(EngineDeadError):
        for i in itertools.count():
            client.add_request(_request(f"r{i}", [4]))
            time.sleep(0.01)


async def test_a_signal_to_the_whole_group_is_the_parents_to_handle(client):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client.handle.process.pid, number)
    client.add_request(_request("good", [4, 5]))
    assert (await _collect(client, {"good"}))["good"][1] == "length"


def test_a_stopped_child_is_noticed_and_forgiven(client):
    client.check_health()

    def health() -> str:
        try:
            client.check_health()
        except EngineDeadError as error:
            return str(error)
        return ""

    os.kill(client.handle.process.pid, signal.SIGSTOP)
    wait_until(lambda: "no life" in health())
    os.kill(client.handle.process.pid, signal.SIGCONT)
    wait_until(lambda: not health())


async def test_a_child_that_stays_silent_is_given_up_and_its_requests_hear_of_it(client, monkeypatch):
    monkeypatch.setattr(core_client, "GIVE_UP_SECONDS", 2.5)
    os.kill(client.handle.process.pid, signal.SIGSTOP)
    client.add_request(_request("waiting", [4, 5]))
    with pytest.raises(EngineDeadError, match="no life"):
        await asyncio.wait_for(client.receive(), PATIENCE)
    assert client.handle.process.wait(PATIENCE) == -signal.SIGKILL


def test_a_child_that_cannot_start_says_why_in_its_own_words(config, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", "/proc/nowhere")
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/proc/nowhere")
    with pytest.raises(EngineDeadError, match="/proc/nowhere"):
        ProcessClient(config)


def test_a_checkpoint_that_cannot_be_used_is_told_in_one_line(tmp_path, capfd):
    """Without the child's traceback, which says nothing of the checkpoint."""
    directory = make_checkpoint(tmp_path, attention_bias=True)
    edit(directory, attention_bias=False)
    config = resolved_config(directory, "cpu")
    with pytest.raises(EngineDeadError, match=r"CheckpointError: .* holds 8 tensors such as"):
        ProcessClient(config)
    written = capfd.readouterr().err
    assert "the engine ends: " in written
    assert "Traceback" not in written


def test_the_child_ends_with_its_parent(config):
    client = ProcessClient(config)
    client._closing = True
    assert client.handle.process.stdin is not None
    client.handle.process.stdin.close()
    assert client.handle.process.wait(PATIENCE) == 0
    client._closing = False
    client.shutdown()
