"""`Credit`: a bound for what trying may cost, in plain steps, for one number of rows."""

from __future__ import annotations

import math

from vllm.core.drafting.cost import StepCost
from vllm.core.drafting.tuning import TUNING, Tuning


class Credit:
    """The balance of what steps with drafts were worth and what they took. Nothing is drafted without credit."""

    __slots__ = ("_cost", "_num_late", "_plain", "_tuning", "balance", "num_plain")

    def __init__(self, cost: StepCost, tuning: Tuning = TUNING) -> None:
        self._cost = cost
        self._tuning = tuning
        self.balance = tuning.first_credit
        """Plain steps in whose time nothing but trying may be done."""
        self.num_plain = 0
        """Plain steps that were measured, up to `Tuning.plain_steps`."""
        self._plain = 0.0
        """Mean seconds of a plain step."""
        self._num_late = 0
        """Steps with drafts in a row that took much longer than usual."""

    def add_plain(self, seconds: float) -> None:
        """Take in a step without drafts."""
        self.num_plain = min(self.num_plain + 1, self._tuning.plain_steps)
        self._plain += (min(seconds, self._limit(0.0)) - self._plain) / self.num_plain
        self.balance = min(self.balance + self._tuning.allowance, self._tuning.most_credit)

    def add_drafted(self, tokens: float, mean: float, seconds: float, *, is_reading: bool) -> None:
        """Take in a step with drafts.

        tokens: that it brought per row, which is its worth in plain steps. mean: drafts per row. is_reading: a draft
        model read text in it.

        A single step that takes much longer than usual was disturbed by something other than its drafts; several in a
        row may not have been. The time of a draft model's reading is not charged: it is paid once for many steps, and
        `Tuning.reading_steps` bounds how often it may be in vain.
        """
        if not self.num_plain:
            return
        if is_reading:
            seconds = min(seconds, self._cost.seconds(mean))
        else:
            limit = self._limit(mean)
            self._num_late = self._num_late + 1 if seconds > limit else 0
            if self._num_late < self._tuning.late_steps:
                seconds = min(seconds, limit)
        self.balance = min(self.balance + tokens - seconds / self._plain, self._tuning.most_credit)

    def _limit(self, mean: float) -> float:
        """Seconds beyond which a step was disturbed."""
        return self._tuning.late_factor * self._cost.seconds(mean) or math.inf
