"""What a request yields does not depend on the KV layout, the prefix cache, the budget of a step, or its neighbours.

On `null` text is a hash of what the KV cache holds, so any slip in slots, tables or reuse changes it; on `cpu` the
comparison is of the last bit of every log-probability.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.neuron.driver import load, resolved_config
from tests.neuron.mini_engine import MiniEngine, Result, random_request, variant
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.targets.null import NullDeviceModel

LONGEST = 40


def _key(prompt: list[int], params: SamplingParams) -> Any:
    return tuple(prompt), params.temperature, params.seed, params.max_tokens, params.logprobs, params.prompt_logprobs


class Oracle:
    """Each request alone, whole, on contiguous KV without a cache."""

    def __init__(self, config: VllmConfig, load_device: Any) -> None:
        self.config = variant(config)
        self.device = load_device(self.config)
        self.known: dict[Any, Result] = {}

    def __call__(self, prompt: list[int], params: SamplingParams) -> Result:
        key = _key(prompt, params)
        if key not in self.known:
            self.known[key] = MiniEngine(self.config, self.device).generate(prompt, params)
        return self.known[key]


def check(engine: MiniEngine, asked: dict[str, tuple[list[int], SamplingParams]], oracle: Oracle) -> None:
    for req_id, (prompt, params) in asked.items():
        result, expected = engine.results[req_id], oracle(prompt, params)
        count = len(result.token_ids)
        if result.finish_reason != "abort":
            assert result.finish_reason == "length" and count == len(expected.token_ids)
            assert result.prompt_logprobs == expected.prompt_logprobs
        assert result.token_ids == expected.token_ids[:count], req_id
        assert result.logprobs == expected.logprobs[: len(result.logprobs)], req_id
        assert result.num_cached_tokens < len(prompt)


def traffic(engine: MiniEngine, rng: random.Random, count: int, longest: int = LONGEST) -> dict[str, Any]:
    """Adds, steps, aborts and resets; returns what was asked for."""
    asked = {}
    for _ in range(count):
        action = rng.random()
        if action < 0.4:
            prompt, params, salt = random_request(rng, longest)
            asked[engine.add(prompt, params, salt=salt)] = (prompt, params)
        elif action < 0.45 and asked:
            engine.abort(rng.choice(list(asked)))
        elif action < 0.46:
            engine.scheduler.reset_prefix_cache()
        else:
            engine.step()
    engine.run()
    return asked


@pytest.fixture(scope="module")
def null_config(tiny_llama):
    return resolved_config(tiny_llama, "null", max_model_len=LONGEST)


@pytest.fixture(scope="module")
def null_oracle(null_config):
    return Oracle(null_config, NullDeviceModel)


LAYOUTS = {
    "block_size": st.sampled_from([None, 1, 2, 3, 5, 8, 16, 32]),
    "prefix_caching": st.booleans(),
    "step_tokens": st.sampled_from([0, 0, 1, 3, 4, 7, 16, 33, 200]),
    "max_num_seqs": st.integers(1, 5),
    "prefill_batch_size": st.integers(1, 5),
    "num_blocks": st.sampled_from([0, 0, 60, 500]),
}


@settings(max_examples=300)
@given(layout=st.fixed_dictionaries(LAYOUTS), seed=st.integers(0, 2**32))
def test_no_layout_changes_a_token_or_a_logprob(null_config, null_oracle, layout, seed):
    if layout["block_size"] is None:
        layout |= {"num_blocks": 0, "prefix_caching": False}
    config = variant(null_config, **layout)
    engine = MiniEngine(config, NullDeviceModel(config))
    asked = traffic(engine, random.Random(seed), 50)
    engine.check_clean()
    check(engine, asked, null_oracle)
    if layout["step_tokens"]:
        assert engine.most_tokens <= max(layout["step_tokens"], layout["max_num_seqs"])


@pytest.mark.parametrize("step_tokens", [0, 13])
def test_thousands_of_steps(null_config, null_oracle, step_tokens):
    config = variant(null_config, block_size=4, prefix_caching=True, step_tokens=step_tokens, num_blocks=60)
    engine, rng = MiniEngine(config, NullDeviceModel(config)), random.Random(step_tokens)
    while engine.num_steps < 2_500:
        check(engine, traffic(engine, rng, 300), null_oracle)
        engine.check_clean()
    assert engine.scheduler.stats().prefix_cache_hits > 1000


# The same to the last bit, with arithmetic.


@pytest.fixture(scope="module")
def cpu(tiny_llama, tmp_path_factory):
    """(config, oracle, a loader that loads each layout once)."""
    base = resolved_config(tiny_llama, "cpu", max_model_len=80)
    devices: dict[Any, Any] = {}

    def load_device(config):
        key = (config.cache_config, config.scheduler_config)
        if str(key) not in devices:
            devices[str(key)] = load(config, tmp_path_factory.mktemp("artifact"))
        return devices[str(key)]

    yield base, Oracle(base, load_device), load_device
    for device in devices.values():
        device.shutdown()


@pytest.mark.parametrize("block_size", [16, 32, 48])
@pytest.mark.parametrize("step_tokens", [0, 4, 13, 64])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_no_layout_changes_a_bit(cpu, block_size, step_tokens, prefix_caching):
    base, oracle, load_device = cpu
    config = variant(base, block_size=block_size, step_tokens=step_tokens, prefix_caching=prefix_caching)
    engine = MiniEngine(config, load_device(config))
    for seed in range(3):
        asked = traffic(engine, random.Random(seed), 40, longest=80)
        engine.check_clean()
        check(engine, asked, oracle)
    assert (engine.scheduler.stats().prefix_cache_hits > 0) == prefix_caching


def test_a_full_hit_computes_one_token(cpu):
    base, oracle, load_device = cpu
    config = variant(base, block_size=16, prefix_caching=True)
    engine = MiniEngine(config, load_device(config))
    prompt, params = list(range(5, 37)), SamplingParams(temperature=0.0, max_tokens=20, logprobs=3, ignore_eos=True)
    first, again = (engine.generate(prompt, params) for _ in range(2))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 31)
    expected = oracle(prompt, params)
    assert (again.token_ids, again.logprobs) == (first.token_ids, first.logprobs)
    assert (first.token_ids, first.logprobs) == (expected.token_ids, expected.logprobs)


def test_a_full_hit_beside_the_owner_of_its_blocks(cpu):
    """The one that is hit goes on generating while another computes the last prompt token of the shared block again."""
    base, oracle, load_device = cpu
    config = variant(base, block_size=16, prefix_caching=True, step_tokens=8)
    engine = MiniEngine(config, load_device(config))
    prompt, params = list(range(5, 37)), SamplingParams(temperature=0.0, max_tokens=20, logprobs=1, ignore_eos=True)
    ids = [engine.add(prompt, params) for _ in range(3)]
    engine.run()
    assert [engine.results[req_id].num_cached_tokens for req_id in ids] == [0, 31, 31]
    check(engine, dict.fromkeys(ids, (prompt, params)), oracle)


def test_a_last_piece_of_one_token(cpu):
    base, oracle, load_device = cpu
    config = variant(base, block_size=16, step_tokens=16)
    engine = MiniEngine(config, load_device(config))
    params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=2, logprobs=2, ignore_eos=True)
    req_id = engine.add(list(range(5, 38)), params)
    engine.run()
    check(engine, {req_id: (list(range(5, 38)), params)}, oracle)
