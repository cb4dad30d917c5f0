"""Ten thousand random steps through scheduler, runner and the null target: afterwards nothing is held by anyone."""

from __future__ import annotations

import random

import pytest

from tests.neuron.driver import resolved_config
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.processes.core_client import InprocClient
from vllm.sampling_params import SamplingParams

STEPS = 10_000


def _request(rng: random.Random, req_id: str) -> EngineCoreRequest:
    """Mostly legal; some too long, some with token ids or parameters that fail on the device."""
    prompt = [rng.randrange(3, 320) for _ in range(rng.choice((1, 2, 9, 40, 63, 64, 80)))]
    params = SamplingParams(temperature=0.0, max_tokens=rng.randrange(1, 30), ignore_eos=rng.random() < 0.5)
    if rng.random() < 0.02:
        params.allowed_token_ids = [10**6]
    if rng.random() < 0.02:
        prompt = [2**40]
    return EngineCoreRequest(req_id, prompt, params.for_core([2]), priority=rng.randrange(3))


@pytest.mark.parametrize(("policy", "overlap"), [("fcfs", False), ("fcfs", True), ("priority", True)])
def test_nothing_is_left_behind(tiny_llama, policy, overlap):
    rng = random.Random(policy)
    config = resolved_config(tiny_llama, "null", max_num_seqs=8, scheduling_policy=policy, async_scheduling=overlap)
    client = InprocClient(config)
    batch = client.core.executor.worker.runner.batch
    live: set[str] = set()
    ended: dict[str, int] = {}
    for step in range(STEPS):
        if rng.random() < 0.3 and len(live) < 40:
            live.add(f"r{step}")
            client.add_request(_request(rng, f"r{step}"))
        if live and rng.random() < 0.05:
            client.abort([rng.choice(sorted(live)), "unknown"])
            live = {req_id for req_id in live if _is_known(client, req_id)}
        for output in client.step().outputs:
            if output.finish_reason is not None:
                live.discard(output.req_id)
                ended[output.finish_reason] = ended.get(output.finish_reason, 0) + 1
        if step % 500 == 0:
            client.call("check_integrity")
    while client.core.has_work:
        client.step()
    client.call("check_integrity")
    stats = client.core.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)
    assert not batch.rows and not batch._lines_in_use
    assert min(ended["length"], ended["stop"], ended["error"]) > 10


def _is_known(client: InprocClient, req_id: str) -> bool:
    scheduler = client.core.scheduler
    return req_id in scheduler._running or req_id in scheduler._waiting
