"""Whether an engine, or a front, is alive: how long it has been silent, and how long its step takes.

Time counts as a thread sees it pass. A process that stood still as a whole (SIGSTOP, a frozen container) waited for
nobody: what such a pause lasted is held against neither side, or a server that wakes up would find its engine dead.
"""

from __future__ import annotations

from collections.abc import Callable

STALL_SECONDS = 1.5
"""Silence, or a step, beyond this makes an engine unhealthy."""
BUSY_FACTOR = 10.0
_MOST_SECONDS_A_LOOK = 1.0
_WORK_SECONDS = 0.1
"""Processor time that a process with nothing to do does not use before it is given up."""
_TIMES_THE_LONGEST = 4.0
_KEPT_A_LOOK = 0.9995


class LivedTime:
    """Seconds since `restart`, seen by a thread that looks several times a second."""

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float) -> None:
        self.seconds = 0.0
        self._looked = now

    def look(self, now: float) -> float:
        self.seconds += min(now - self._looked, _MOST_SECONDS_A_LOOK)
        self._looked = now
        return self.seconds


class BeatWatch:
    """The beats of another process, counted by it, as a thread or task that looks several times a second sees them.

    One that is busy gives no beats either, and must not be mistaken for one that is dead: whoever uses the processor is
    given BUSY_FACTOR times as long.

    still: seconds without a beat and without work to speak of. silent: seconds without a beat. Both 0 before the first.
    """

    def __init__(self, now: float) -> None:
        self._still, self._silent = LivedTime(now), LivedTime(now)
        self._beats = 0
        self._used: float | None = None

    @property
    def still(self) -> float:
        return self._still.seconds

    @property
    def silent(self) -> float:
        return self._silent.seconds

    def is_dead(self, limit: float) -> bool:
        """limit: seconds that it may stand still."""
        return self.still > limit or self.silent > BUSY_FACTOR * limit

    def look(self, now: float, beats: int, used: Callable[[], float]) -> None:
        """used: asks for the processor time of the process so far, in seconds."""
        if beats != self._beats or not beats:
            self._beats, self._used = beats, None
            self._silent.restart(now)
            self._still.restart(now)
        elif self._silent.look(now) > STALL_SECONDS and self._works(used()):
            self._still.restart(now)
        else:
            self._still.look(now)

    def _works(self, used: float) -> bool:
        """Whether it did work since this was last said, or first asked."""
        if self._used is None:
            self._used = used
        works = used - self._used > _WORK_SECONDS
        if works:
            self._used = used
        return works


class StepWatch:
    """Steps as a thread beside them sees them.

    age: seconds of the step under way; 0 when there is none. allowance: what a step may take before it is held to be
    stuck: STALL_SECONDS, or several times the longest of late where steps are long (prompts of many tokens on a slow
    machine); half of that is forgotten in six minutes.
    """

    def __init__(self) -> None:
        self.age = 0.0
        self._began = 0.0
        self._lived = LivedTime(0.0)
        self._longest = 0.0

    @property
    def allowance(self) -> float:
        return max(STALL_SECONDS, _TIMES_THE_LONGEST * self._longest)

    def look(self, began: float, now: float) -> None:
        """began: when the step under way did; 0: there is none."""
        if began != self._began:
            self._longest = max(self._longest, self.age)
            self._began = began
            self._lived.restart(began)
        self._longest *= _KEPT_A_LOOK
        self.age = self._lived.look(now) if began else 0.0
