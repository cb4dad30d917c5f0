"""Random traffic over random limits. The fake device checks every step against its own books; texts are exact."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.fake_device import VOCAB_SIZE, make_config
from tests.core.harness import Engine
from vllm.config import VllmConfig

MAX_LEN = 24


@st.composite
def configs(draw: st.DrawFn) -> VllmConfig:
    max_num_seqs = draw(st.integers(1, 5))
    lookahead = draw(st.sampled_from([0, 0, 3]))
    block_size = draw(st.sampled_from([None, 1, 3, 4, 8]))
    blocks_per_seq = -(-MAX_LEN // (block_size or MAX_LEN))
    mixed = draw(st.booleans())
    max_prefill_tokens = draw(st.sampled_from([0, 1, 5]))
    prefix_caching = block_size is not None and draw(st.booleans())
    fewest_tokens = max_num_seqs
    if not mixed and not max_prefill_tokens:
        fewest_tokens = max(fewest_tokens, MAX_LEN)
    return make_config(
        max_num_seqs=max_num_seqs,
        max_model_len=MAX_LEN,
        block_size=block_size,
        num_blocks=blocks_per_seq * draw(st.integers(1, max_num_seqs)) if block_size else None,
        prefix_caching=prefix_caching,
        saves_evicted=prefix_caching and draw(st.booleans()),
        saves_computed=prefix_caching and draw(st.booleans()),
        max_num_batched_tokens=draw(st.sampled_from([None, fewest_tokens, fewest_tokens + 7])),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        max_consecutive_prefills=draw(st.integers(1, 3)),
        prefill_batch_size=draw(st.integers(1, 3)),
        max_prefill_tokens=max_prefill_tokens,
        mixed_steps=mixed,
        num_lookahead_tokens=lookahead,
    )


def add_random(engine: Engine, rng: random.Random, **extra: object) -> str:
    """A request whose prompt often begins like another's, or is another's."""
    common = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2][: rng.choice([0, 4, 8, 12])]
    own = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, MAX_LEN - 1 - len(common)))]
    prompt = common if common and rng.random() < 0.2 else common + own
    max_tokens = rng.choice([1, 2, 5, 9, None])
    return engine.add(
        prompt,
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, min(3, max_tokens or 3)]),
        stop_token_ids=rng.choice([[], [3], [4, 5]]),
        ignore_eos=rng.random() < 0.3,
        prompt_logprobs=rng.choice([None, None, 1]),
        priority=rng.randint(-1, 1),
        lora_id=rng.choice([0, 0, 1]),
        pooling=rng.choice([None] * 6 + ["last", "mean"]),
        **extra,
    )


def random_traffic(engine: Engine, rng: random.Random, num_actions: int) -> None:
    """Adds, steps, aborts (also of requests whose step is under way) and failures of single requests."""
    for _ in range(num_actions):
        action = rng.random()
        alive = [req_id for req_id, told in engine.told.items() if told.end is None][-40:]
        if action < 0.35:
            add_random(engine, rng)
        elif action < 0.45 and alive:
            engine.abort(rng.choice(alive))
        elif action < 0.50 and alive:
            engine.step(abort_between=tuple(rng.sample(alive, min(2, len(alive)))))
        elif action < 0.53 and alive:
            engine.device.fail.add(rng.choice(alive))
        elif action < 0.54:
            engine.change_weights()
        else:
            engine.step()


@settings(max_examples=300)
@given(
    config=configs(),
    seed=st.integers(0, 2**32),
    speculation=st.sampled_from(["granted", "fused"]),
    run_ahead=st.booleans(),
)
def test_random_traffic_keeps_the_contract(config: VllmConfig, seed: int, speculation: str, run_ahead: bool) -> None:
    lookahead = config.scheduler_config.num_lookahead_tokens
    engine = Engine(
        config,
        run_ahead=run_ahead,
        fused_drafts=lookahead if speculation == "fused" else 0,
        store_size=seed % 20 + 1,
        bad_copy=(0, 3, 7)[seed % 3],
        slow_loads=(0, 1, 5)[seed // 3 % 3],
    )
    random_traffic(engine, random.Random(seed), 60)
    engine.run()
    engine.check_clean()
    engine.check_texts()


@settings(max_examples=80)
@given(config=configs(), seed=st.integers(0, 2**32))
def test_requests_start_in_order(config: VllmConfig, seed: int) -> None:
    """Whoever starts comes before everyone who is in the queue; those who wait for KV have left it in order."""
    engine, rng = Engine(config, slow_loads=seed % 4), random.Random(seed)
    by_priority = config.scheduler_config.scheduling_policy == "priority"

    def key(req_id: str) -> tuple[int, float]:
        request = engine.told[req_id].request
        return (request.priority if by_priority else 0, request.times.arrival)

    for _ in range(50):
        if rng.random() < 0.5:
            add_random(engine, rng)
            continue
        before = len(engine.admitted)
        engine.step()
        started = [req_id for req_id in engine.admitted[before:] if not engine.told[req_id].request.num_external_tokens]
        waiting = [req_id for req_id in engine.told if req_id in engine.scheduler._waiting]
        assert [key(req_id) for req_id in started] == sorted(key(req_id) for req_id in started)
        assert all(key(one) < key(other) for one in started for other in waiting)
    engine.run()
    engine.check_clean()


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        make_config(max_num_seqs=4, max_model_len=MAX_LEN),
        make_config(
            max_num_seqs=4,
            max_model_len=MAX_LEN,
            block_size=4,
            prefix_caching=True,
            mixed_steps=True,
            max_prefill_tokens=6,
            prefill_batch_size=2,
            scheduling_policy="priority",
        ),
    ],
    ids=["contiguous", "blocks"],
)
def test_ten_thousand_random_steps_leave_nothing_behind(config: VllmConfig, run_ahead: bool) -> None:
    engine = Engine(config, run_ahead=run_ahead)
    rng = random.Random(7)
    for _ in range(20):
        random_traffic(engine, rng, 500)
        engine.run()
        engine.check_clean()
        engine.check_texts()
        engine.told.clear()
        engine.device.fail.clear()
    assert engine.num_added > 3000
    assert (engine.num_ahead > 2000) == run_ahead
