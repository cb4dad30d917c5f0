"""Whether an engine is alive: how long it has been silent, and how long its step takes.

Time counts as a thread sees it pass. A process that stood still as a whole (SIGSTOP, a frozen container) waited for
nobody: what such a pause lasted is held against neither side, or a server that wakes up would find its engine dead.
"""

from __future__ import annotations

STALL_SECONDS = 1.5
"""Silence, or a step, beyond this makes an engine unhealthy."""
_MOST_SECONDS_A_LOOK = 1.0
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
