"""How many tokens are worth drafting: from the acceptance seen and from what steps were measured to take.

A step that drafts k tokens for a row brings it

    t(k) = 1 + p1 + p1 p2 + ... + p1 ... pk

tokens, where pj is the share of drafts at position j that were accepted where all before them were. Where drafts are
looked up, only a share f of the text has any before it, and passes in fewer steps for that: a token of text takes
s(k) = f / t(k) + 1 - f steps, and a share f / t(k) / s(k) of the steps drafts. The count chosen is the one with the
most tokens a second, none where a pass over more tokens is no longer free.

Seconds of a step are measured, by rows (in powers of two) and by mean drafts a row; between measured means they are
interpolated, and beyond the largest taken to grow at half the pace, so that more is tried. Of each mean a low quantile
counts, since what disturbs a step only ever makes it longer. What a draft model needs to catch up with a prompt is
spread over the steps that follow.

Counts beside the best one, and 0, are measured again from time to time, so seldom that all of it together costs about
one per cent: a count that would lose a share s of a step's time waits for at least `REGRET_STEPS * s` steps, for less
while it was measured a few times only, and for longer where a draft model must first read for it. A probe whose drafts
are all accepted is followed by another. No step drafts more than twice what was measured; and where nothing pays, a
draft model is tried by one row alone, the one that has drafted most, so that it need not read the prompts of all.

Whatever is misjudged, there is a bound to what it costs. Each number of rows has a credit, in plain steps: a step with
drafts adds what it was worth and takes the time in which it ran, and a plain one adds `ALLOWANCE`. Without credit
nothing is drafted. (A bandit that is held to a share of its baseline: Wu et al., Conservative Bandits, 2016.)

A request whose own drafts fail, beyond what chance explains, is left out for a while that doubles each time.

None of it touches the text: what is verified is what would have been sampled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

LEAST_GAIN = 1.01
"""Drafting must promise so much more than plain decoding to be done at all."""
PROBE_STEPS = 8
PROBES_IN_A_ROW = 8
FIRST_STEPS = 4
"""Plain steps that are measured before anything else is tried."""
REST_STEPS = 3
"""Where nothing is drafted, nor tried, so many steps pass before that is thought over: thinking takes its time, too."""
REGRET_STEPS = 250
OVERHEAD_STEPS = 32
READING_STEPS = 200
"""A probe for which a draft model must read for as long as a step takes waits for so many."""
ALLOWANCE = 0.01
"""The share of plain decoding's pace that may be lost by trying."""
FIRST_CREDIT, MOST_CREDIT = 2.0, 4.0
"""Steps that may be lost at once, whatever was gained before."""
LATE_STEPS = 3
"""Of so many steps in a row that took more than twice their time, it is believed."""
_FORGET = 0.985
_SHARE_PACE, _LEAST_SHARE = 0.03, 0.01
_PRIOR_RATE, _PRIOR_WEIGHT = 0.7, 8.0
_SAMPLES, _SURE_SAMPLES = 15, 4
_PLAIN_STEPS = 32
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 128
_OWN_FORGET = 0.85
_OWN_WEIGHT = 3.0


class RequestDrafts:
    """What became of one request's drafts.

    num_drafts: verifications that had drafts; num_drafted, num_accepted: their tokens. back_at: the controller's step
    at which it may draft again.
    """

    __slots__ = ("_gain", "_pause", "_spread", "_weight", "back_at", "num_accepted", "num_drafted", "num_drafts")

    def __init__(self) -> None:
        self.num_drafts = self.num_drafted = self.num_accepted = 0
        self.back_at = 0
        self._pause = _SHORTEST_PAUSE
        self._gain = self._spread = self._weight = 0.0

    def observe(self, drafted: int, accepted: int, needed: float, step: int) -> None:
        """Take in one verification, of this step. needed: accepted tokens at which so many drafts begin to pay."""
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
            self.back_at = step + self._pause
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


class FoundShare:
    """The share of tokens before which a row had something to draft, recent ones counting more.

    It belongs to the text, where the share of steps does not: what can be drafted passes in fewer steps, the more is.
    """

    def __init__(self) -> None:
        self._found = self._all = _PRIOR_WEIGHT

    def observe(self, found: int, others: int) -> None:
        """Tokens that a step brought rows which drafted, and rows which might have."""
        keep = _FORGET ** (found + others)
        self._found = keep * self._found + found
        self._all = keep * self._all + found + others

    @property
    def value(self) -> float:
        """Never 0, so that it can be found to have become more."""
        return max(self._found / self._all, _LEAST_SHARE)


class StepCost:
    """Seconds of a step by mean drafts a row, for one number of rows: of the last few measurements, a low one."""

    def __init__(self) -> None:
        self._samples: dict[float, deque[float]] = {}
        self._known: dict[float, float] = {}
        self._changed: set[float] = set()

    def observe(self, num_drafts: float, seconds: float) -> None:
        """num_drafts: kept to a quarter, below that to a sixteenth; more than none is never taken for none."""
        parts = 4 if num_drafts >= 0.25 else 16
        key = max(round(parts * num_drafts), num_drafts > 0) / parts
        samples = self._samples.setdefault(key, deque(maxlen=_SAMPLES))
        samples.append(seconds)
        self._changed.add(key)

    @property
    def knows_plain(self) -> bool:
        return 0 in self._samples

    @property
    def knows_drafts(self) -> bool:
        return len(self._samples) > self.knows_plain

    @property
    def widest(self) -> float:
        """The most mean drafts a row that were measured."""
        return max(self._samples, default=0.0)

    def confidence(self, num_drafts: float) -> float:
        """How well the drafted mean nearest to this one is known, 0 to 1: a first measurement may be far off."""
        nearest = min((each for each in self._samples if each), key=lambda each: abs(each - num_drafts), default=0)
        num_samples = len(self._samples[nearest]) if nearest else 0
        return min(num_samples / _SURE_SAMPLES, 1.0) ** 2

    def seconds(self, num_drafts: float) -> float:
        """Measured, or between the two measured means around it, or beyond the greatest. 0.0 if nothing is known."""
        known = self._known
        while self._changed:
            key = self._changed.pop()
            samples = sorted(self._samples[key])
            known[key] = samples[len(samples) // 3]
        if num_drafts in known:
            return known[num_drafts]
        below = max((each for each in known if each < num_drafts), default=None)
        above = min((each for each in known if each > num_drafts), default=None)
        if below is None:
            return 0.0 if above is None else known[above]
        if above is None:
            slope = (known[below] - known[0]) / below if below and 0 in known else 0.0
            return known[below] + 0.5 * max(slope, 0.0) * (num_drafts - below)
        return known[below] + (known[above] - known[below]) * (num_drafts - below) / (above - below)


class Expected(NamedTuple):
    """Of a step: tokens that it brings a row, and the seconds it takes. mean: drafts a row, where there are any."""

    tokens: float
    seconds: float
    mean: float

    @property
    def pace(self) -> float:
        return self.tokens / self.seconds

    def loss_beside(self, best: Expected) -> float:
        """What is lost by a step of this kind, in steps of the best kind; never more than one."""
        return min(self.seconds / best.seconds * (1.0 - self.pace / best.pace), 1.0)


class _Load:
    """What is known of steps of about so many rows. num_steps: of them; measured_at: when each count last was.

    rest: how many more steps draft nothing before that is thought over. granted: the last step's count, counts: what
    each row got of it. is_narrow: one row alone may draft. credit: plain steps in whose time nothing but trying may be
    done; plain: seconds of one, on average. num_late: drafted steps in a row that took much longer than such steps do.
    """

    __slots__ = (
        "cost", "counts", "credit", "granted", "is_narrow", "measured_at", "num_late", "num_plain", "num_probes",
        "num_steps", "plain", "probe", "probe_again", "rest",
    )  # fmt: skip

    def __init__(self, max_drafts: int) -> None:
        self.cost = StepCost()
        self.credit = FIRST_CREDIT
        self.plain, self.num_plain = 0.0, 0
        self.num_steps = self.rest = 0
        self.measured_at = [0] * (max_drafts + 1)
        self.granted = 0
        self.counts: list[int] = []
        self.is_narrow = False
        self.probe: int | None = None
        self.probe_again: int | None = None
        self.num_probes = self.num_late = 0

    def settle_plain(self, seconds: float) -> None:
        self.num_plain = min(self.num_plain + 1, _PLAIN_STEPS)
        self.plain += (min(seconds, self._limit(0.0)) - self.plain) / self.num_plain
        self.credit = min(self.credit + ALLOWANCE, MOST_CREDIT)

    def settle_drafted(self, tokens: float, mean: float, seconds: float, is_reading: bool) -> None:
        """tokens: that the step brought a row, and so what it was worth in plain steps.

        What keeps a step for much longer than such steps take is not its drafts; if it goes on, it may be. What a draft
        model reads is not charged: it is paid once for many steps, and how seldom it may be in vain is another matter.
        """
        if not self.num_plain:
            return
        if is_reading:
            seconds = min(seconds, self.cost.seconds(mean))
        else:
            limit = self._limit(mean)
            self.num_late = self.num_late + 1 if seconds > limit else 0
            if self.num_late < LATE_STEPS:
                seconds = min(seconds, limit)
        self.credit = min(self.credit + tokens - seconds / self.plain, MOST_CREDIT)

    def _limit(self, mean: float) -> float:
        """Seconds beyond which a step was disturbed."""
        return 2.0 * self.cost.seconds(mean) or math.inf

    def age(self, count: int) -> int:
        """Steps since so many drafts were last measured."""
        return self.num_steps - self.measured_at[count]


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
        self._step = 0
        self._found = FoundShare()
        self._eligible = 1.0
        self._overhead = 0.0
        self._reading = 0.0
        self._num_readings = 0

    def grant(self, rows: Sequence[tuple[RequestDrafts, int]], limit: int | None = None) -> list[int]:
        """How many tokens each row may draft in a decode step: rows as (record, room); limit: the step's own, a row."""
        most = self.max_drafts if limit is None else max(min(self.max_drafts, limit), 0)
        if not self.adaptive:
            return [max(min(room, most), 0) for _, room in rows]
        load = self._load(len(rows))
        load.num_steps += 1
        self._step += 1
        if load.rest:
            load.rest -= 1
            load.granted, load.counts = 0, []
            return [0] * len(rows)
        load.granted = min(self._choose(load, len(rows)), most)
        counts = [max(min(room, load.granted), 0) if record.back_at <= self._step else 0 for record, room in rows]
        if load.granted:
            eligible = max(sum(count > 0 for count in counts) / len(counts), _LEAST_SHARE)
            self._eligible += _SHARE_PACE * (eligible - self._eligible)
        self._narrow(load, [record for record, _ in rows], counts)
        load.counts = counts
        return counts

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
        num_beginners = sum(
            count > 0 and not record.num_drafts for (record, *_), count in zip(rows, load.counts, strict=False)
        )
        for record, drafted, accepted in rows:
            if drafted:
                record.observe(drafted, accepted, self._needed(load, drafted) if self.adaptive else 0.0, self._step)
                self._count(drafted, accepted)
        self._measure(load, rows, seconds, num_caught_up, num_beginners)
        drafts = [(drafted, accepted) for _, drafted, accepted in rows if drafted]
        if load.probe and drafts and all(accepted == drafted for drafted, accepted in drafts):
            load.num_probes += 1
            load.probe_again = load.probe if load.num_probes < PROBES_IN_A_ROW else None
        elif load.probe is not None:
            load.probe_again = None
        load.probe = None

    def _narrow(self, load: _Load, records: Sequence[RequestDrafts], counts: list[int]) -> None:
        """Cut `counts` to one row, or to twice what was measured; those who drafted most come first."""
        if not load.cost.knows_plain:
            return
        left = load.granted if load.is_narrow else max(int(2 * load.cost.widest * len(counts)), 1)
        if sum(counts) <= left:
            return
        for row in sorted(range(len(counts)), key=lambda row: -records[row].num_drafts):
            counts[row] = min(counts[row], left)
            left -= counts[row]

    def _count(self, drafted: int, accepted: int) -> None:
        self._rates.observe(drafted, accepted)
        self.num_drafts += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        for position in range(accepted):
            self.accepted_by_position[position] += 1

    def _measure(
        self,
        load: _Load,
        rows: Sequence[tuple[RequestDrafts, int, int]],
        seconds: float,
        num_caught_up: int,
        num_beginners: int,
    ) -> None:
        """num_beginners: rows that might draft for the first time, for which a draft model reads a whole prompt."""
        if seconds <= 0.0 or not rows:
            return
        mean = sum(drafted for _, drafted, _ in rows) / len(rows)
        drafts, is_known = bool(mean or num_caught_up), load.cost.knows_drafts
        if drafts:
            tokens = 1.0 + sum(accepted for _, _, accepted in rows) / len(rows)
            load.settle_drafted(tokens, mean, seconds, num_caught_up > 0)
        else:
            load.settle_plain(seconds)
        excess = max(seconds - load.cost.seconds(mean), 0.0) if num_caught_up and load.cost.knows_plain else 0.0
        if num_caught_up and num_beginners:
            # The first of all is no measure: the draft's weights come from the disk with it.
            self._reading += (excess / num_beginners - self._reading) / 2 if self._num_readings else 0.0
            self._num_readings += 1
        if not num_caught_up:
            load.cost.observe(mean, seconds)
            load.measured_at[load.granted] = load.num_steps
            if load.granted:
                granted = [row for row, count in zip(rows, load.counts, strict=True) if count]
                found = sum(1 + accepted for _, drafted, accepted in granted if drafted)
                self._found.observe(found, sum(not drafted for _, drafted, _ in granted))
        if is_known and drafts:
            self._overhead += (excess - self._overhead) / OVERHEAD_STEPS

    def _choose(self, load: _Load, num_rows: int) -> int:
        load.is_narrow = False
        if load.num_plain < FIRST_STEPS:
            return 0 if load.num_plain or load.num_steps <= FIRST_STEPS else self.max_drafts
        if load.credit <= 0.0:
            load.rest = REST_STEPS
            return 0
        if not load.cost.knows_drafts:
            load.is_narrow = True
            return int(load.age(1) > READING_STEPS * self._reading / load.cost.seconds(0))
        expected = [self._expect(load, num_rows, count, self._eligible) for count in range(self.max_drafts + 1)]
        best = max(range(len(expected)), key=lambda count: expected[count].pace)
        if expected[best].pace < LEAST_GAIN * expected[0].pace:
            best = 0
        load.is_narrow = best == 0 and self._num_readings > 0
        if load.probe_again is not None:
            load.probe = load.probe_again = max(load.probe_again, best)
            return load.probe
        load.num_probes = 0
        if load.is_narrow:
            expected = [expected[0], self._expect(load, num_rows, 1, 1.0 / num_rows)]
        load.probe = self._due_probe(load, expected, best)
        if load.probe is not None:
            return load.probe
        if best == 0:
            is_far = max(each.pace for each in expected[1:]) < 0.9 * expected[0].pace
            load.rest = 2 * REST_STEPS if is_far else REST_STEPS
        return best

    def _due_probe(self, load: _Load, expected: list[Expected], best: int) -> int | None:
        candidates = {0, best - 1, best + 1} & set(range(len(expected))) - {best}
        for count in sorted(candidates, key=lambda each: load.measured_at[each]):
            wait = REGRET_STEPS * expected[count].loss_beside(expected[best])
            if count:
                wait *= load.cost.confidence(expected[count].mean)
            if best == 0:
                wait += READING_STEPS * self._reading / expected[0].seconds
            if load.age(count) >= max(PROBE_STEPS, math.ceil(wait)):
                load.measured_at[count] = load.num_steps
                return count
        return None

    def _expect(self, load: _Load, num_rows: int, count: int, share: float) -> Expected:
        """What steps bring in which this share of the rows may draft so many."""
        if not count:
            return Expected(1.0, load.cost.seconds(0), 0.0)
        tokens, found = self._rates.tokens(count), self._found.value
        steps = found / tokens + 1.0 - found
        share_drafting = share * found / tokens / steps
        nobody = (1.0 - share_drafting) ** num_rows
        mean = count * share_drafting / (1.0 - nobody)  # of the steps in which somebody drafts
        seconds = nobody * load.cost.seconds(0) + (1.0 - nobody) * load.cost.seconds(mean)
        return Expected(1.0 + share * (1.0 / steps - 1.0), seconds + self._overhead, mean)

    def _needed(self, load: _Load, num_drafts: int) -> float:
        """Accepted tokens at which so many drafts break even, nearly; a few in a hundred where they seem to be free."""
        plain = load.cost.seconds(0)
        return max(0.9 * (load.cost.seconds(num_drafts) / plain - 1.0), 0.05) if plain else 0.05

    def _load(self, num_rows: int) -> _Load:
        key = num_rows.bit_length()
        if key not in self._loads:
            self._loads[key] = _Load(self.max_drafts)
        return self._loads[key]
