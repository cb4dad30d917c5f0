"""Lived time and the watch over steps."""

from __future__ import annotations

from vllm.engine.processes.liveness import BUSY_FACTOR, STALL_SECONDS, BeatWatch, LivedTime, StepWatch


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


def watched(seconds: float, *, share: float) -> BeatWatch:
    """A process that gave a beat `seconds` ago, and has used so much of a processor since."""
    watch = BeatWatch(0.0)
    watch.look(0.0, 1, lambda: 7.0)
    for i in range(1, int(seconds * 20) + 1):
        watch.look(i / 20, 1, lambda i=i: 7.0 + share * i / 20)
    return watch


def test_a_process_that_stands_still_is_dead():
    assert not watched(29, share=0).is_dead(30)
    assert watched(31, share=0).is_dead(30)
    assert watched(31, share=0.001).is_dead(30), "what its other threads use is no work"


def test_a_busy_process_is_not_dead():
    """S1: one that reads a large body gives no beat meanwhile. It has little of a processor that others use too."""
    assert not watched(31, share=1.0).is_dead(30)
    assert not watched(200, share=0.05).is_dead(30)
    assert watched(30 * BUSY_FACTOR + 1, share=1.0).is_dead(30)


def test_beats_begin_anew():
    watch = watched(31, share=0)
    watch.look(31.05, 2, lambda: 7.0)
    assert watch.still == watch.silent == 0.0 and not watch.is_dead(30)


def test_one_that_has_not_begun_is_waited_for():
    watch = BeatWatch(0.0)
    for i in range(1000):
        watch.look(i / 4, 0, lambda: 0.0)
    assert not watch.is_dead(30)
