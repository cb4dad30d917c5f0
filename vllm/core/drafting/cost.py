"""What steps take: measured seconds by mean drafts per row, and what a step is expected to bring."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from vllm.core.drafting.tuning import TUNING, Tuning


class StepCost:
    """Seconds of a step by mean drafts per row, for one number of rows: a low one of the last few samples."""

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._samples: dict[float, deque[float]] = {}
        self._known: dict[float, float] = {}
        self._changed: set[float] = set()

    def observe(self, num_drafts: float, seconds: float) -> None:
        """num_drafts: mean per row, kept to a quarter, below that to a sixteenth; more than 0 is never taken for 0."""
        parts = 4 if num_drafts >= 0.25 else 16
        key = max(round(parts * num_drafts), num_drafts > 0) / parts
        samples = self._samples.setdefault(key, deque(maxlen=self._tuning.samples))
        samples.append(seconds)
        self._changed.add(key)

    @property
    def knows_plain(self) -> bool:
        """Whether steps without drafts were measured."""
        return 0 in self._samples

    @property
    def knows_drafts(self) -> bool:
        """Whether steps with drafts were measured."""
        return len(self._samples) > self.knows_plain

    @property
    def widest(self) -> float:
        """The largest mean of drafts per row that was measured."""
        return max(self._samples, default=0.0)

    def confidence(self, num_drafts: float) -> float:
        """How well the measured mean nearest to this one is known, 0 to 1: a first sample may be far off."""
        nearest = min((each for each in self._samples if each), key=lambda each: abs(each - num_drafts), default=0)
        num_samples = len(self._samples[nearest]) if nearest else 0
        return min(num_samples / self._tuning.sure_samples, 1.0) ** 2

    def seconds(self, num_drafts: float) -> float:
        """Measured, interpolated, or extrapolated beyond the widest mean; 0.0 if nothing was measured."""
        known = self._known
        while self._changed:
            key = self._changed.pop()
            samples = sorted(self._samples[key])
            known[key] = samples[len(samples) // self._tuning.quantile_divisor]
        if num_drafts in known:
            return known[num_drafts]
        below = max((each for each in known if each < num_drafts), default=None)
        above = min((each for each in known if each > num_drafts), default=None)
        if below is None:
            return 0.0 if above is None else known[above]
        if above is None:
            slope = (known[below] - known[0]) / below if below and 0 in known else 0.0
            return known[below] + self._tuning.slope_beyond * max(slope, 0.0) * (num_drafts - below)
        return known[below] + (known[above] - known[below]) * (num_drafts - below) / (above - below)


class Expected(NamedTuple):
    """What a step is expected to bring and to take."""

    tokens: float
    """Tokens per row."""
    seconds: float
    mean: float
    """Drafts per row in steps that have any."""

    @property
    def pace(self) -> float:
        """Tokens per row and second."""
        return self.tokens / self.seconds

    def loss_beside(self, best: Expected) -> float:
        """What a step of this kind loses, in steps of the best kind; at most one."""
        return min(self.seconds / best.seconds * (1.0 - self.pace / best.pace), 1.0)
