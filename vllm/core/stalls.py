"""How long running streams wait for prompts: the seconds that steps with prompt tokens put between two of their tokens.

What users bound in tokens (`max_num_batched_tokens` where prompts run in pieces beside decodes, where a step is one or
the other `max_consecutive_prefills`) is seen here in seconds. A stall is the time, from one step that decodes to the
next, of the steps that computed prompt tokens while a sequence was able to decode; that next step's own time counts if
it has prompt tokens too. Without prompts there is no stall, however slow the decodes are.
"""

from __future__ import annotations


class StallMeter:
    """Takes the steps in the order in which they end. All times are seconds of one monotonic clock."""

    __slots__ = ("_last_end", "_stalls", "_waited")

    def __init__(self) -> None:
        self._last_end = 0.0
        self._waited = 0.0
        self._stalls: list[float] = []

    def note(self, started: float, ended: float, *, has_prompts: bool, has_streams: bool, decodes: bool) -> None:
        """A step has ended. has_streams: some sequence could decode, whether or not the step `decodes`."""
        if not has_streams:
            self._waited = 0.0
        elif has_prompts:
            self._waited += ended - max(started, self._last_end)
        self._last_end = ended
        if decodes and self._waited:
            self._stalls.append(self._waited)
            self._waited = 0.0

    def take(self) -> list[float]:
        """Stalls that ended since the last call, in seconds."""
        stalls = self._stalls
        if stalls:
            self._stalls = []
        return stalls
