"""How many tokens are worth drafting: from the acceptance seen and from what steps were measured to take.

A step of `rows` decoding rows that drafts k tokens for each takes t(rows, k) seconds and brings a row

    tokens(k) = 1 + p1 + p1 p2 + ... + p1 ... pk

tokens, where pj is the share of drafts at position j that were accepted where all before them were. The count chosen is
the one with the most tokens a second. With many rows, where a pass over more tokens is no longer free, that is 0.

t is measured, step by step, for the powers of two of `rows`; between measured counts it is interpolated, and a count
larger than all measured ones is taken to be as dear as they make it look, so that it is tried. What a draft model needs
to catch up with a prompt is spread over the steps that follow. Counts beside the best one, and 0, are measured again
from time to time, so seldom that all of it together costs about one per cent: a count that would lose a share s of a
step's time waits for at least `REGRET_STEPS * s` steps, so that what is nearly as good is never lost sight of. A probe
whose drafts are all accepted is followed by another.

A request whose own drafts fail, beyond what chance explains, is left out for a while that doubles each time.

None of it touches the text: what is verified is what would have been sampled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

LEAST_GAIN = 1.01
"""Drafting must promise so much more than plain decoding to be done at all."""
PROBE_STEPS = 8
PROBES_IN_A_ROW = 8
REGRET_STEPS = 250
OVERHEAD_STEPS = 32
_FORGET = 0.985
_PRIOR_RATE, _PRIOR_WEIGHT = 0.7, 4.0
_SAMPLES = 9
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 128
_OWN_FORGET = 0.85
_OWN_WEIGHT = 3.0


class RequestDrafts:
    """What became of one request's drafts.

    num_drafts: verifications that had drafts; num_drafted, num_accepted: their tokens. wait: steps left to sit out.
    """

    __slots__ = ("_gain", "_pause", "_spread", "_weight", "num_accepted", "num_drafted", "num_drafts", "wait")

    def __init__(self) -> None:
        self.num_drafts = self.num_drafted = self.num_accepted = 0
        self.wait = 0
        self._pause = _SHORTEST_PAUSE
        self._gain = self._spread = self._weight = 0.0

    def observe(self, drafted: int, accepted: int, needed: float) -> None:
        """Take in one verification. needed: accepted tokens at which so many drafts begin to pay."""
        self.num_drafts += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        self._weight = _OWN_FORGET * self._weight + 1.0
        difference = accepted - needed - self._gain
        self._gain += difference / self._weight
        self._spread += (difference * (accepted - needed - self._gain) - self._spread) / self._weight
        if self._weight < _OWN_WEIGHT:
            return
        if self._gain + math.sqrt(self._spread / self._weight) < 0.0:
            self.wait = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._gain = self._spread = self._weight = 0.0
        else:
            self._pause = _SHORTEST_PAUSE


class AcceptanceRates:
    """Shares of accepted drafts by position, the recent ones counting more."""

    def __init__(self, max_drafts: int) -> None:
        self._reached = [_PRIOR_WEIGHT] * max_drafts
        self._accepted = [_PRIOR_WEIGHT * _PRIOR_RATE] * max_drafts

    def observe(self, drafted: int, accepted: int) -> None:
        for position in range(min(drafted, accepted + 1)):
            self._reached[position] = _FORGET * self._reached[position] + 1.0
            self._accepted[position] = _FORGET * self._accepted[position] + (position < accepted)

    def tokens(self, num_drafts: int) -> float:
        """Tokens that a row is expected to gain from a step with so many drafts, the target's own among them."""
        expected = likelihood = 1.0
        for position in range(num_drafts):
            likelihood *= self._accepted[position] / self._reached[position]
            expected += likelihood
        return expected


class StepCost:
    """Seconds of a step by drafts a row, for one number of rows: medians of the last few measurements."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}

    def observe(self, num_drafts: int, seconds: float) -> None:
        self._samples.setdefault(num_drafts, deque(maxlen=_SAMPLES)).append(seconds)

    def knows(self, num_drafts: int) -> bool:
        return num_drafts in self._samples

    def seconds(self, num_drafts: int) -> float:
        """Measured, or between the two measured counts around it, or that of the nearest. 0.0 if nothing is known."""
        if num_drafts in self._samples:
            return median(self._samples[num_drafts])
        below = max((known for known in self._samples if known < num_drafts), default=None)
        above = min((known for known in self._samples if known > num_drafts), default=None)
        if below is None or above is None:
            nearest = below if above is None else above
            return 0.0 if nearest is None else median(self._samples[nearest])
        low, high = median(self._samples[below]), median(self._samples[above])
        return low + (high - low) * (num_drafts - below) / (above - below)


class _Load:
    """What is known of steps of about so many rows. age: steps since each count was last tried."""

    __slots__ = ("age", "cost", "num_probes", "probe", "probe_again")

    def __init__(self, max_drafts: int) -> None:
        self.cost = StepCost()
        self.age = [0] * (max_drafts + 1)
        self.probe: int | None = None
        self.probe_again: int | None = None
        self.num_probes = 0


class DraftController:
    """Grants drafts to the rows of decode steps. Owned by the scheduler's thread.

    max_drafts: the most a row may get. adaptive: False grants that always.
    """

    def __init__(self, max_drafts: int, *, adaptive: bool = True) -> None:
        self.max_drafts = max_drafts
        self.adaptive = adaptive
        self.num_drafts = self.num_drafted = self.num_accepted = 0
        self.accepted_by_position = [0] * max_drafts
        self._rates = AcceptanceRates(max_drafts)
        self._loads: dict[int, _Load] = {}
        self._overhead = 0.0

    def grant(self, rows: Sequence[tuple[RequestDrafts, int]], limit: int | None = None) -> list[int]:
        """How many tokens each row may draft in a decode step: rows as (record, room); limit: the step's own, a row."""
        most = self.max_drafts if limit is None else max(min(self.max_drafts, limit), 0)
        if not self.adaptive:
            return [max(min(room, most), 0) for _, room in rows]
        count = min(self._choose(len(rows)), most)
        return [self._grant_row(record, min(room, count)) for record, room in rows]

    def observe(
        self,
        rows: Sequence[tuple[RequestDrafts, int, int]],
        seconds: float,
        num_caught_up: int = 0,
    ) -> None:
        """Take in a decode step: rows as (record, drafted, accepted); seconds of the device, 0.0 if not measured.

        num_caught_up: tokens a draft model had to read beside the newest ones.
        """
        load = self._load(len(rows))
        for record, drafted, accepted in rows:
            if drafted:
                record.observe(drafted, accepted, self._needed(load, drafted) if self.adaptive else 0.0)
                self._count(drafted, accepted)
        self._measure(load, rows, seconds, num_caught_up)
        drafts = [(drafted, accepted) for _, drafted, accepted in rows if drafted]
        if load.probe and drafts and all(accepted == drafted for drafted, accepted in drafts):
            load.num_probes += 1
            load.probe_again = load.probe if load.num_probes < PROBES_IN_A_ROW else None
        elif load.probe is not None:
            load.probe_again = None
        load.probe = None

    def _grant_row(self, record: RequestDrafts, count: int) -> int:
        if record.wait:
            record.wait -= 1
            return 0
        return max(count, 0)

    def _count(self, drafted: int, accepted: int) -> None:
        self._rates.observe(drafted, accepted)
        self.num_drafts += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        for position in range(accepted):
            self.accepted_by_position[position] += 1

    def _measure(
        self, load: _Load, rows: Sequence[tuple[RequestDrafts, int, int]], seconds: float, num_caught_up: int
    ) -> None:
        if seconds <= 0.0 or not rows:
            return
        mean = math.ceil(sum(drafted for _, drafted, _ in rows) / len(rows))
        excess = 0.0
        if num_caught_up and load.cost.knows(mean):
            excess = max(seconds - load.cost.seconds(mean), 0.0)
        elif not num_caught_up:
            load.cost.observe(mean, seconds)
            load.age[mean] = 0
        if mean or num_caught_up:
            self._overhead += (excess - self._overhead) / OVERHEAD_STEPS

    def _choose(self, num_rows: int) -> int:
        load = self._load(num_rows)
        load.age = [age + 1 for age in load.age]
        if not load.cost.knows(0):
            return self._begin(load)
        values = [self._value(load, count) for count in range(self.max_drafts + 1)]
        best = max(range(len(values)), key=values.__getitem__)
        if values[best] < LEAST_GAIN * values[0]:
            best = 0
        if load.probe_again is not None:
            load.probe = load.probe_again = max(load.probe_again, best)
            return load.probe
        load.num_probes = 0
        load.probe = self._due_probe(load, values, best)
        return best if load.probe is None else load.probe

    def _begin(self, load: _Load) -> int:
        """Before anything is measured: plain steps twice where time is measured, else drafts."""
        return 0 if load.age[0] <= 2 else self.max_drafts

    def _due_probe(self, load: _Load, values: list[float], best: int) -> int | None:
        candidates = {0, best - 1, best + 1} & set(range(self.max_drafts + 1)) - {best}
        for count in sorted(candidates, key=lambda each: -load.age[each]):
            share = load.cost.seconds(count) / load.cost.seconds(best) * (1.0 - values[count] / values[best])
            if load.age[count] >= max(PROBE_STEPS, math.ceil(REGRET_STEPS * share)):
                load.age[count] = 0
                return count
        return None

    def _value(self, load: _Load, count: int) -> float:
        """Tokens a second and row."""
        return self._rates.tokens(count) / (load.cost.seconds(count) + (self._overhead if count else 0.0))

    def _needed(self, load: _Load, num_drafts: int) -> float:
        """Accepted tokens at which so many drafts break even, nearly; a few in a hundred where they seem to be free."""
        plain = load.cost.seconds(0)
        return max(0.9 * (load.cost.seconds(num_drafts) / plain - 1.0), 0.05) if plain else 0.05

    def _load(self, num_rows: int) -> _Load:
        key = num_rows.bit_length()
        if key not in self._loads:
            self._loads[key] = _Load(self.max_drafts)
        return self._loads[key]
