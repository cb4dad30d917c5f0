"""One contract, every target: what the same request yields never depends on where, when or beside whom it runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.neuron.driver import Driver, load, resolved_config, with_blocks
from vllm.sampling_params import SamplingParams

TARGETS = ["null", "cpu"]
VOCAB = 320


def _prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def _sampled(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=0.95, seed=seed, logprobs=3, repetition_penalty=1.1, max_tokens=1000)


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tiny_llama, tmp_path_factory):
    """(config, device) of a target, contiguous KV, four lines of 64 tokens."""
    config = resolved_config(tiny_llama, request.param)
    device = load(config, tmp_path_factory.mktemp(f"artifact-{request.param}"))
    yield config, device
    device.shutdown()


def _alone(target, prompt: list[int], count: int, params: SamplingParams | None = None):
    driver = Driver(*target)
    driver.add("r", prompt, [0], params)
    driver.generate("r", count)
    return driver.tokens["r"], driver.logprobs["r"]


def test_a_batch_gives_each_row_its_solo_tokens(target):
    prompts = {f"r{i}": _prompt(i, 3 + 7 * i) for i in range(4)}
    expected = {name: _alone(target, prompt, 8)[0] for name, prompt in prompts.items()}
    driver = Driver(*target)
    for line, (name, prompt) in enumerate(prompts.items()):
        driver.add(name, prompt, [line])
        driver.step(**{name: 0})
    for _ in range(7):
        driver.step(**dict.fromkeys(prompts, 0))
    assert driver.tokens == expected
    assert not driver.errors


def test_prompts_prefilled_together_equal_those_prefilled_alone(target):
    prompts = {f"r{i}": _prompt(20 + i, 5 + 9 * i) for i in range(3)}
    expected = {name: _alone(target, prompt, 2)[0] for name, prompt in prompts.items()}
    driver = Driver(*target)
    for line, (name, prompt) in enumerate(prompts.items()):
        driver.add(name, prompt, [line])
    driver.step(**dict.fromkeys(prompts, 0))
    driver.step(**dict.fromkeys(prompts, 0))
    assert driver.tokens == expected


@pytest.mark.parametrize("line", [0, 1, 3])
def test_the_line_does_not_matter(target, line):
    prompt = _prompt(3, 11)
    driver = Driver(*target)
    driver.add("r", prompt, [line], _sampled(5))
    driver.generate("r", 6)
    assert (driver.tokens["r"], driver.logprobs["r"]) == _alone(target, prompt, 6, _sampled(5))


def test_a_reused_line_remembers_nothing(target):
    prompt = _prompt(4, 6)
    driver = Driver(*target)
    driver.add("old", _prompt(99, 40), [0])
    driver.generate("old", 5)
    driver.finish("old")
    driver.add("new", prompt, [0])
    assert driver.generate("new", 6) == _alone(target, prompt, 6)[0]


def test_sampling_does_not_see_its_neighbours(target):
    prompt = _prompt(6, 9)
    expected = _alone(target, prompt, 6, _sampled(11))
    driver = Driver(*target)
    driver.add("noise", _prompt(7, 20), [0], SamplingParams(temperature=1.5, seed=1, max_tokens=1000))
    driver.add("r", prompt, [2], _sampled(11))
    driver.add("greedy", _prompt(8, 2), [3])
    for name in ("noise", "r", "greedy"):
        driver.step(**{name: 0})
    for _ in range(5):
        driver.step(noise=0, r=0, greedy=0)
    assert (driver.tokens["r"], driver.logprobs["r"]) == expected


def test_another_seed_gives_other_tokens(target):
    params = [SamplingParams(temperature=2.0, seed=seed, max_tokens=1000) for seed in (1, 2)]
    first, second = (_alone(target, _prompt(9, 5), 12, p)[0] for p in params)
    assert first != second


def test_one_token_prompts(target):
    driver = Driver(*target)
    for line, token in enumerate((5, 6, 5)):
        driver.add(f"r{line}", [token], [line])
    driver.step(r0=0, r1=0, r2=0)
    driver.step(r0=0, r1=0, r2=0)
    assert driver.tokens["r0"] == driver.tokens["r2"] == _alone(target, [5], 2)[0]
    assert driver.tokens["r0"] != driver.tokens["r1"]


def test_every_length_up_to_the_last_position_is_served(target):
    driver = Driver(*target)
    driver.add("r", _prompt(10, 63), [1])
    driver.generate("r", 2)
    assert len(driver.tokens["r"]) == 2 and not driver.errors


def test_prompt_logprobs_of_a_prompt_in_pieces_equal_those_of_the_whole(target):
    prompt, params = _prompt(12, 17), SamplingParams(temperature=0.0, prompt_logprobs=2, max_tokens=9)
    whole, pieces = Driver(*target), Driver(*target)
    whole.add("r", prompt, [0], params)
    whole.step(r=0)
    pieces.add("r", prompt, [1], params)
    for size in (5, 1, 11):
        pieces.step(r=size)
    assert [entry.token_id for entry in whole.prompt_logprobs["r"]] == prompt[1:]
    assert whole.prompt_logprobs["r"] == pieces.prompt_logprobs["r"]
    assert whole.tokens == pieces.tokens


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunking_does_not_matter(target, data):
    prompt = _prompt(data.draw(st.integers(0, 1000)), data.draw(st.integers(2, 50)))
    driver = Driver(*target)
    driver.add("r", prompt, [data.draw(st.integers(0, 3))])
    left = len(prompt)
    while left:
        size = data.draw(st.integers(1, left))
        driver.step(r=size)
        left -= size
    assert driver.generate("r", 3) == _alone(target, prompt, 3)[0]


@pytest.mark.parametrize(("name", "block_size"), [("null", 1), ("null", 8), ("null", 32), ("cpu", 16), ("cpu", 32)])
def test_block_kv_equals_contiguous_kv(name, block_size, tiny_llama, tmp_path):
    config = resolved_config(tiny_llama, name)
    contiguous = load(config, tmp_path / "contiguous")
    blocks = with_blocks(config, block_size, 4 * 64 // block_size)
    device = load(blocks, tmp_path / "blocks")
    order = np.random.default_rng(0).permutation(blocks.cache_config.num_blocks).tolist()
    driver = Driver(blocks, device)
    for i, prompt in enumerate((_prompt(30, 30), _prompt(31, 7))):
        driver.add(f"r{i}", prompt, [order.pop() for _ in range(64 // block_size)])
        driver.step(**{f"r{i}": 0})
    for _ in range(5):
        driver.step(r0=0, r1=0)
    assert driver.tokens["r0"] == _alone((config, contiguous), _prompt(30, 30), 6)[0]
    assert driver.tokens["r1"] == _alone((config, contiguous), _prompt(31, 7), 6)[0]


def test_a_faulty_request_ends_alone(target):
    driver = Driver(*target)
    driver.add("good", _prompt(40, 4), [0])
    driver.step(good=0)
    driver.add("thief", _prompt(41, 4), [0])
    driver.step(good=0, thief=0)
    assert list(driver.errors) == ["thief"]
    assert driver.tokens["good"] == _alone(target, _prompt(40, 4), 2)[0]
