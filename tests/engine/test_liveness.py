"""Lived time and the watch over steps."""

from __future__ import annotations

from vllm.engine.liveness import STALL_SECONDS, LivedTime, StepWatch


def test_time_that_is_looked_at_often_is_counted_whole():
    lived = LivedTime(100.0)
    for i in range(1, 41):
        lived.look(100.0 + i / 4)
    assert lived.seconds == 10.0
    lived.restart(200.0)
    assert lived.look(200.5) == 0.5


def test_a_pause_counts_as_one_look():
    lived = LivedTime(0.0)
    assert lived.look(240.0) <= 1.0 < STALL_SECONDS


def test_a_step_ages_and_ends():
    watch = StepWatch()
    watch.look(0.0, 50.0)
    assert watch.age == 0.0
    watch.look(50.1, 50.25)
    watch.look(50.1, 50.5)
    assert round(watch.age, 6) == 0.4
    watch.look(50.6, 50.75)
    assert round(watch.age, 6) == 0.15
    watch.look(0.0, 51.0)
    assert watch.age == 0.0


def test_long_steps_are_allowed_for_where_they_are_usual_and_forgotten_where_they_are_not():
    watch, now = StepWatch(), 0.0
    assert watch.allowance == STALL_SECONDS
    for _ in range(40):
        now += 0.25
        watch.look(0.1, now)
    assert watch.age > watch.allowance, "the first long step is not expected"
    watch.look(now + 0.1, now + 0.25)
    assert watch.allowance > 30
    for _ in range(20_000):
        now += 0.25
        watch.look(0.0, now)
    assert watch.allowance == STALL_SECONDS
