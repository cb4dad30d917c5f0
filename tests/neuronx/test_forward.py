"""Forwards on the stand-in: order, buckets, mixed parameters, failures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.neuron.driver import Driver
from tests.neuron.test_target_contract import _alone, _prompt
from tests.neuronx.conftest import targets
from tests.neuronx.inputs import decode, prefill
from vllm.device.model import DeviceLost
from vllm.sample.table import LOGITS_NEEDED
from vllm.sampling_params import SamplingParams

on_the_device = pytest.mark.parametrize("target", targets("device"), indirect=True, ids="-".join)
on_the_host = pytest.mark.parametrize("target", targets("host"), indirect=True, ids="-".join)
PROMPTS = [_prompt(50 + i, 4 + 5 * i) for i in range(4)]


@on_the_device
def test_results_come_back_in_the_order_of_the_rows(target):
    _, device = target
    expected = [_alone(target, prompt, 2)[0] for prompt in PROMPTS]
    order = [2, 0, 3, 1]
    first = device.forward(prefill([PROMPTS[i] for i in order], order)).tokens[:, 0].tolist()
    assert first == [expected[i][0] for i in order]
    second = device.forward(decode(first, order, [len(PROMPTS[i]) for i in order])).tokens[:, 0].tolist()
    assert second == [expected[i][1] for i in order]


@on_the_host
def test_logits_come_back_in_the_order_of_the_rows(target):
    _, device = target
    order = [1, 3, 0]
    output = device.forward(prefill([PROMPTS[i] for i in order], order))
    assert output.tokens is None and output.logits.shape == (3, 320)
    assert output.logits.argmax(1).tolist() == [_alone(target, PROMPTS[i], 1)[0][0] for i in order]


@on_the_device
def test_each_row_is_sampled_by_its_own_parameters(target):
    """Greedy rows stay greedy beside hot ones, whoever came first."""
    hot = SamplingParams(temperature=2.0, top_k=200, max_tokens=100)
    driver = Driver(*target)
    for line, prompt in enumerate(PROMPTS):
        driver.add(f"r{line}", prompt, [line], hot if line % 2 == 0 else None)
        driver.step(**{f"r{line}": 0})
    driver.finish("r0")
    for _ in range(6):
        driver.step(r1=0, r2=0, r3=0)
    for line in (1, 3):
        assert driver.tokens[f"r{line}"] == _alone(target, PROMPTS[line], 7)[0]
    assert driver.tokens["r2"] != _alone(target, PROMPTS[2], 7)[0]


@on_the_device
def test_a_disabled_top_k_is_not_uniform(target):
    """With little heat the best token wins nearly always; a uniform draw over 256 would hardly ever pick it."""
    prompts = [_prompt(100 + i, 6) for i in range(12)]
    cool = SamplingParams(temperature=0.02, max_tokens=100)
    drawn = [_alone(target, prompt, 1, cool)[0] for prompt in prompts]
    best = [_alone(target, prompt, 1)[0] for prompt in prompts]
    assert sum(a == b for a, b in zip(drawn, best, strict=True)) >= 9


@on_the_device
@pytest.mark.parametrize("ties", ["first", "last"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_prompts_do_not_depend_on_how_ties_are_broken(target, length, ties, monkeypatch):
    expected = _alone(target, _prompt(length, length), 3)[0]
    monkeypatch.setenv("STANDIN_ARGMAX_TIES", ties)
    assert _alone(target, _prompt(length, length), 3)[0] == expected


@on_the_device
def test_the_bucket_we_count_is_the_bucket_that_runs(target):
    """Padding is accounted by `ModelInput.bucket`; the library chooses for itself."""
    config, device = target
    driver = Driver(config, device)
    driver.add("r", PROMPTS[2], [0])
    for wrapper in device.application.models:
        wrapper.executed.clear()
    used = [driver.step(r=0).bucket_uses[0].bucket for _ in range(3)]
    executed = [call["bucket"] for wrapper in device.application.models for call in wrapper.executed]
    assert executed == used


@on_the_device
def test_a_decode_that_leaves_a_live_row_out_is_refused_before_it_harms(target):
    driver = Driver(*target)
    for line in range(2):
        driver.add(f"r{line}", PROMPTS[line], [line])
        driver.step(**{f"r{line}": 0})
    driver.step(r1=0)
    assert "live KV lines [0]" in driver.errors["r1"]
    assert driver.generate("r0", 1) == _alone(target, PROMPTS[0], 1)[0]


def test_capabilities_are_what_the_programs_can(target):
    config, device = target
    capabilities = device.capabilities
    assert not capabilities.deterministic
    if config.neuron_config.on_device_sampling:
        assert capabilities.sampling == frozenset()
        assert capabilities.max_top_k == capabilities.default_top_k == 256
        assert not capabilities.structured_outputs
    else:
        assert capabilities.sampling == LOGITS_NEEDED - {"prompt_logprobs"}
        assert capabilities.max_top_k == 320 and capabilities.default_top_k == 0
        assert capabilities.structured_outputs


@on_the_device
def test_errors_of_the_hardware_end_the_engine_others_do_not(target, monkeypatch):
    _, device = target

    def fail(text):
        def forward(**arguments):
            raise RuntimeError(text)

        monkeypatch.setattr(device.application, "forward", forward)
        device.forward(prefill([PROMPTS[0]], [0]))

    with pytest.raises(DeviceLost, match="NRT_EXEC_HW_ERR_NC_UE"):
        fail("nrt_execute status=1202 NRT_EXEC_HW_ERR_NC_UE")
    with pytest.raises(RuntimeError, match="NRT_EXEC_BAD_INPUT"):
        fail("status=1002 NRT_EXEC_BAD_INPUT")


@on_the_device
def test_tensors_have_the_types_the_library_names(target, monkeypatch):
    _, device = target
    seen = {}
    forward = device.application.forward

    def spy(**arguments):
        seen.update({name: (str(value.dtype), tuple(value.shape)) for name, value in arguments.items()})
        return forward(**arguments)

    monkeypatch.setattr(device.application, "forward", spy)
    device.forward(prefill([PROMPTS[0]], [1]))
    assert seen == {
        "input_ids": ("torch.int32", (1, 4)),
        "position_ids": ("torch.int32", (1, 4)),
        "seq_ids": ("torch.int32", (1,)),
        "sampling_params": ("torch.float32", (1, 3)),
    }


def test_memory_counts_the_shards_and_every_copy_of_a_kv_head(target):
    memory = target[1].memory()
    assert memory["kv_cache"] == 2 * 2 * 2 * 16 * 4 * 64 * 4  # k and v, layers, heads, width, lines, positions, bytes
    assert memory["weights"] > 300_000


def test_a_device_that_was_shut_down_is_lost(target):
    config, device = target
    other = type(device)(config, device.application, device.directory)
    other.shutdown()
    with pytest.raises(DeviceLost):
        other.forward(prefill([PROMPTS[0]], [0]))


def test_host_arrays_of_wrong_shape_are_not_sampled(target):
    from types import SimpleNamespace

    from vllm.targets.neuronx import outputs

    short = SimpleNamespace(tokens=None, hidden_states=np.zeros((1, 1, 300), np.float32))
    with pytest.raises((RuntimeError, AttributeError)):
        outputs.last_logits(short, 1, 320)


# Failures of a batch.


def _three(target):
    driver = Driver(*target)
    for line in range(3):
        driver.add(f"r{line}", PROMPTS[line], [line])
        driver.step(**{f"r{line}": 0})
    return driver


def test_a_row_at_fault_ends_before_its_batch_runs(target):
    """The sampling of one row goes out of range: it alone ends, and the others are what they are without it."""
    driver = _three(target)
    driver.runner.batch.tokens[1, len(PROMPTS[1])] = 99999
    driver.step(r0=0, r1=0, r2=0)
    driver.step(r0=0, r2=0)
    assert list(driver.errors) == ["r1"] and "from 0 to 319" in driver.errors["r1"]
    for line in (0, 2):
        assert driver.tokens[f"r{line}"] == _alone(target, PROMPTS[line], 3)[0]


def _failing(monkeypatch, device, *errors):
    left, forward = list(errors), device.application.forward

    def fail_first(**arguments):
        if left:
            raise left.pop(0)
        return forward(**arguments)

    monkeypatch.setattr(device.application, "forward", fail_first)


@on_the_device
def test_a_batch_that_fails_once_is_run_again_and_nobody_notices(target, monkeypatch):
    driver = _three(target)
    _failing(monkeypatch, target[1], RuntimeError("status=1004 NRT_EXEC_COMPLETED_WITH_ERR"))
    driver.step(r0=0, r1=0, r2=0)
    assert not driver.errors
    for line in range(3):
        assert driver.tokens[f"r{line}"] == _alone(target, PROMPTS[line], 2)[0]


@on_the_device
def test_a_batch_that_fails_twice_ends_its_requests_and_the_next_is_served(target, monkeypatch):
    driver = _three(target)
    _failing(monkeypatch, target[1], *[RuntimeError("status=1004 NRT_EXEC_COMPLETED_WITH_ERR")] * 2)
    driver.step(r0=0, r1=0, r2=0)
    assert sorted(driver.errors) == ["r0", "r1", "r2"]
    monkeypatch.undo()
    assert _alone(target, PROMPTS[3], 2)[0]


@on_the_device
def test_a_device_on_which_everything_fails_is_lost(target, monkeypatch):
    _, device = target
    monkeypatch.setattr(device, "_failures", 0)
    _failing(monkeypatch, device, *[RuntimeError("status=4 NRT_RESOURCE")] * 9)
    driver = Driver(*target)
    for line in range(2):
        driver.add(f"r{line}", PROMPTS[line], [line])
        driver.step(**{f"r{line}": 0})
    assert sorted(driver.errors) == ["r0", "r1"]
    driver.add("r2", PROMPTS[2], [2])
    with pytest.raises(DeviceLost, match="3 calls in a row"):
        driver.step(r2=0)
    monkeypatch.undo()
    device._failures = 0
