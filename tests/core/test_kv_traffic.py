"""A request waits for its KV apart from the queue: whoever else can run does, and its blocks stay where they are."""

from __future__ import annotations

import pytest

from tests.core.fake_device import make_config
from tests.core.harness import Engine
from vllm.core.contract import KVOperation
from vllm.core.request import RequestStatus

PROMPT, OTHER = [*range(1, 10), 1, 2, 3], [7, 7, 7, 7, 7, 7, 7, 7]
SLOW = 4


@pytest.fixture
def engine() -> Engine:
    """PROMPT's three blocks are in the store, and not in the pool. The loads of a request end in several steps."""
    config = make_config(
        max_num_seqs=3, max_model_len=24, block_size=4, num_blocks=8, prefix_caching=True, saves_evicted=True
    )
    engine = Engine(config, slow_loads=SLOW)
    for prompt in (PROMPT, OTHER, [5] * 20, [6] * 20):
        engine.add(prompt, max_tokens=1, ignore_eos=True)
        engine.run()
    assert engine.scheduler.kv_traffic.num_known >= 3
    return engine


def wait_for_kv(engine: Engine) -> str:
    req_id = engine.add(PROMPT, max_tokens=3, ignore_eos=True)
    engine.step()
    assert engine.told[req_id].request.status is RequestStatus.WAITING_FOR_KV
    return req_id


def test_others_run_while_one_waits_for_its_kv(engine: Engine) -> None:
    waiting = wait_for_kv(engine)
    other = engine.add([9, 9], max_tokens=1, ignore_eos=True)
    outputs = engine.step()
    assert [output.req_id for output in outputs] == [other]
    assert engine.told[waiting].request.status is RequestStatus.WAITING_FOR_KV
    assert engine.scheduler.num_waiting == 1 and engine.told[waiting].request in engine.scheduler.requests()
    engine.run()
    assert engine.told[waiting].request.num_external_tokens == 11
    engine.check_clean()
    engine.check_texts()


def test_a_step_with_nothing_else_says_that_it_waits(engine: Engine) -> None:
    wait_for_kv(engine)
    step = engine.scheduler.schedule()
    assert step.waits_for_kv and not step.is_empty
    engine.under_way.append(step)
    engine.run()
    engine.check_clean()


def test_blocks_of_one_that_left_are_held_until_their_tickets_are_done(engine: Engine) -> None:
    waiting = wait_for_kv(engine)
    loading = {order.block_id for order, _ in engine.device.loading.values()}
    assert loading
    engine.abort(waiting)
    assert all(engine.scheduler.pool.refs[block] == 1 for block in loading)
    assert engine.scheduler.has_finished_requests(), "the loads are still to end"
    again = engine.add(PROMPT, max_tokens=2, ignore_eos=True)
    engine.run()
    engine.check_clean()
    engine.check_texts()
    assert engine.told[again].request.num_cached_tokens == 11, "what the ticket brought is found"


def test_a_failed_load_costs_what_is_behind_it(engine: Engine) -> None:
    engine.device.bad_copy, engine.device.num_copies = 2, 0
    req_id = engine.add(PROMPT, max_tokens=3, ignore_eos=True)
    engine.run()
    assert engine.told[req_id].request.num_cached_tokens < 11
    engine.check_clean()
    engine.check_texts()


@pytest.mark.parametrize("reset_store", [False, True])
def test_a_reset_puts_it_back_into_the_queue_before_those_behind_it(engine: Engine, reset_store: bool) -> None:
    waiting = wait_for_kv(engine)
    behind = engine.add([9, 9], max_tokens=1)
    engine.scheduler.reset_prefix_cache(reset_store)
    engine.scheduler.check_integrity()
    assert engine.told[waiting].request.status is RequestStatus.WAITING
    assert engine.scheduler._waiting.peek() is engine.told[waiting].request
    engine.run()
    assert engine.told[behind].end is not None
    engine.check_clean()
    engine.check_texts()


def test_loads_under_way_are_bounded_and_saves_go_first(engine: Engine) -> None:
    most = engine.scheduler.kv_traffic._max_loads
    engine.add(PROMPT, max_tokens=3)
    while engine.scheduler.has_unfinished_requests():
        step = engine.scheduler.schedule()
        operations = [order.operation for order in step.kv_orders]
        assert operations == sorted(operations) and operations.count(KVOperation.LOAD) <= most
        engine.under_way.append(step)
        engine._finish_step()
