"""The contract of every target, on the stand-in in its three versions; and its tokens are the `cpu` target's.

Left out is what a target without block KV has no answer to: prompts in pieces, and log-probabilities of prompts.
"""

from __future__ import annotations

import pytest

from tests.neuron import test_target_contract as contract
from tests.neuron.driver import Driver, load, resolved_config
from tests.neuron.test_target_contract import (
    test_a_batch_gives_each_row_its_solo_tokens,
    test_a_faulty_request_ends_alone,
    test_a_reused_line_remembers_nothing,
    test_every_length_up_to_the_last_position_is_served,
    test_one_token_prompts,
    test_prompts_prefilled_together_equal_those_prefilled_alone,
)
from tests.neuronx.conftest import targets
from vllm.sampling_params import SamplingParams

__all__ = [
    "test_a_batch_gives_each_row_its_solo_tokens",
    "test_a_faulty_request_ends_alone",
    "test_a_reused_line_remembers_nothing",
    "test_every_length_up_to_the_last_position_is_served",
    "test_one_token_prompts",
    "test_prompts_prefilled_together_equal_those_prefilled_alone",
]


sampling_on_the_host = pytest.mark.parametrize("target", targets("host"), indirect=True, ids="-".join)


@pytest.fixture(scope="module")
def cpu(tiny_llama, tmp_path_factory):
    config = resolved_config(tiny_llama, "cpu")
    device = load(config, tmp_path_factory.mktemp("cpu"))
    yield config, device
    device.shutdown()


@pytest.mark.parametrize("line", [0, 1, 3])
@sampling_on_the_host
def test_the_line_does_not_matter(target, line):
    contract.test_the_line_does_not_matter(target, line)


@sampling_on_the_host
def test_sampling_does_not_see_its_neighbours(target):
    contract.test_sampling_does_not_see_its_neighbours(target)


@sampling_on_the_host
def test_another_seed_gives_other_tokens(target):
    contract.test_another_seed_gives_other_tokens(target)


@pytest.mark.parametrize("length", [1, 2, 3, 17, 60])
def test_greedy_tokens_are_the_cpu_targets(target, cpu, length):
    prompt = contract._prompt(length, length)
    count = min(12, 64 - length)
    assert contract._alone(target, prompt, count)[0] == contract._alone(cpu, prompt, count)[0]


@sampling_on_the_host
def test_host_sampling_draws_what_the_cpu_target_draws(target, cpu):
    params = SamplingParams(
        temperature=0.9,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        seed=4,
        repetition_penalty=1.2,
        logit_bias={7: 3.0},
        logprobs=2,
    )
    tokens, logprobs = contract._alone(target, contract._prompt(5, 9), 10, params)
    expected, expected_logprobs = contract._alone(cpu, contract._prompt(5, 9), 10, params)
    assert tokens == expected
    assert [entry.rank for entry in logprobs] == [entry.rank for entry in expected_logprobs]
    assert [entry.logprob for entry in logprobs] == pytest.approx(
        [entry.logprob for entry in expected_logprobs], abs=1e-4
    )


def test_prompts_in_pieces_are_refused_alone(target):
    driver = Driver(*target)
    driver.add("good", contract._prompt(1, 4), [0])
    driver.step(good=0)
    driver.add("piece", contract._prompt(2, 9), [1])
    driver.step(piece=5)
    driver.step(good=0)
    assert list(driver.errors) == ["piece"] and "whole" in driver.errors["piece"]
    assert driver.tokens["good"] == contract._alone(target, contract._prompt(1, 4), 2)[0]
