"""How long streams wait for prompts, against a device that takes a second a token."""

from __future__ import annotations

import pytest

from tests.core.fake_device import make_config
from tests.core.harness import Engine
from vllm.core.stalls import StallMeter


class SlowEngine(Engine):
    """Time passes while the device computes, and only then."""

    def __init__(self, **options: object) -> None:
        super().__init__(make_config(**{"max_num_seqs": 4, "max_model_len": 64, "block_size": 4, **options}))
        execute = self.device.execute

        def slowly(work):  # type: ignore[no-untyped-def]
            self.now += work.total_num_scheduled_tokens
            return execute(work)

        self.device.execute = slowly  # type: ignore[method-assign]

    def _tick(self) -> float:
        return self.now

    def stalls(self) -> list[float]:
        return self.scheduler.stalls.take()

    def start_stream(self, max_tokens: int = 40) -> str:
        req_id = self.add([1, 2], max_tokens=max_tokens, ignore_eos=True)
        while not self.told[req_id].token_ids:
            self.step()
        return req_id


@pytest.mark.parametrize("budget", [5, 8, 16])
def test_mixed_steps_stall_no_longer_than_their_budget(budget: int) -> None:
    engine = SlowEngine(mixed_steps=True, max_num_batched_tokens=budget, prefill_batch_size=4)
    engine.start_stream()
    for i in range(3):
        engine.add([3 + i] * 30, max_tokens=1)
    engine.run()
    stalls = engine.stalls()
    assert max(stalls) == budget
    assert sum(stalls) == 3 * 30 + len(stalls), "every prompt token was waited for once, beside one decode a step"


@pytest.mark.parametrize("consecutive", [1, 2, 3])
def test_without_mixed_steps_consecutive_prefills_add_up(consecutive: int) -> None:
    engine = SlowEngine(max_consecutive_prefills=consecutive)
    engine.start_stream()
    for i in range(6):
        engine.add([3 + i] * 30, max_tokens=1)
    engine.run()
    assert engine.stalls() == [30.0 * consecutive] * (6 // consecutive)


@pytest.mark.parametrize("mixed", [True, False])
def test_nobody_stalls_who_cannot_decode_or_has_no_prompt_to_wait_for(mixed: bool) -> None:
    engine = SlowEngine(mixed_steps=mixed, prefill_batch_size=4)
    engine.start_stream()
    engine.run()
    assert engine.stalls() == []


def test_a_wait_whose_streams_are_gone_is_forgotten() -> None:
    engine = SlowEngine(max_consecutive_prefills=4)
    stream = engine.start_stream()
    engine.add([3] * 30, max_tokens=1)
    engine.step()
    engine.abort(stream)
    engine.run()
    engine.start_stream()
    engine.run()
    assert engine.stalls() == []


def test_overlapping_steps_are_not_counted_twice() -> None:
    meter = StallMeter()
    meter.note(0.0, 10.0, has_prompts=True, has_streams=True, decodes=True)
    meter.note(4.0, 13.0, has_prompts=True, has_streams=True, decodes=True)
    assert meter.take() == [10.0, 3.0]
    assert meter.take() == []
