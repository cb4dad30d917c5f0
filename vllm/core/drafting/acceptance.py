"""Which drafts are accepted: by request, by position, and how much of the text has any."""

from __future__ import annotations

import math

from vllm.core.drafting.tuning import TUNING, Tuning


class RequestDrafts:
    """What became of one request's drafts."""

    __slots__ = (
        "_gain", "_pause", "_spread", "_tuning", "_weight", "back_at", "num_accepted", "num_drafted", "num_drafts",
    )  # fmt: skip

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self.num_drafts = 0
        """Verifications that had drafts."""
        self.num_drafted = 0
        """Tokens that were drafted."""
        self.num_accepted = 0
        """Drafted tokens that were accepted."""
        self.back_at = 0
        """Step of the controller from which the request may draft."""
        self._pause = tuning.shortest_pause
        self._gain = self._spread = self._weight = 0.0

    def observe(self, drafted: int, accepted: int, needed: float, step: int) -> None:
        """Take in one verification, in tokens. needed: accepted tokens at which so many drafts begin to pay.

        step: of the controller.
        """
        tuning = self._tuning
        self.num_drafts += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        self._weight = tuning.own_forget * self._weight + 1.0
        difference = accepted - needed - self._gain
        self._gain += difference / self._weight
        self._spread += (difference * (accepted - needed - self._gain) - self._spread) / self._weight
        if self._weight < tuning.own_weight:
            return
        if self._gain + math.sqrt(self._spread / self._weight) < 0.0:
            self.back_at = step + self._pause
            self._pause = min(2 * self._pause, tuning.longest_pause)
            self._gain = self._spread = self._weight = 0.0
        else:
            self._pause = tuning.shortest_pause


class AcceptanceRates:
    """Shares of accepted drafts by position; recent ones count more."""

    def __init__(self, max_drafts: int, tuning: Tuning = TUNING) -> None:
        self._forget = tuning.forget
        self._reached = [tuning.prior_weight] * max_drafts
        self._accepted = [tuning.prior_weight * tuning.prior_rate] * max_drafts

    def observe(self, drafted: int, accepted: int) -> None:
        for position in range(min(drafted, accepted + 1)):
            self._reached[position] = self._forget * self._reached[position] + 1.0
            self._accepted[position] = self._forget * self._accepted[position] + (position < accepted)

    def tokens(self, num_drafts: int) -> float:
        """Tokens that a step with this many drafts is expected to bring a row, its own token among them."""
        expected = likelihood = 1.0
        for position in range(num_drafts):
            likelihood *= self._accepted[position] / self._reached[position]
            expected += likelihood
        return expected


class FoundShare:
    """The share of tokens before which a row had something to draft; recent ones count more.

    This share belongs to the text. The share of steps does not: long drafts pass their part of the text in fewer steps.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._found = self._all = tuning.prior_weight

    def observe(self, found: int, others: int) -> None:
        """Take in one step's tokens: of rows that drafted, and of rows that might have."""
        keep = self._tuning.forget ** (found + others)
        self._found = keep * self._found + found
        self._all = keep * self._all + found + others

    @property
    def value(self) -> float:
        """Never 0, so that it can be found to have risen."""
        return max(self._found / self._all, self._tuning.least_share)
