"""`DraftController`: grants drafts to the rows of decode steps, and learns from what became of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm.core.drafting.acceptance import AcceptanceRates, FoundShare, RequestDrafts
from vllm.core.drafting.budget import Credit
from vllm.core.drafting.cost import Expected, StepCost
from vllm.core.drafting.tuning import TUNING, Tuning


class _Load:
    """What is known of steps of about one number of rows."""

    __slots__ = (
        "cost", "counts", "credit", "granted", "idle", "is_single_row", "measured_at", "num_probes", "num_steps",
        "probe", "probe_again",
    )  # fmt: skip

    def __init__(self, max_drafts: int, tuning: Tuning) -> None:
        self.cost = StepCost(tuning)
        self.credit = Credit(self.cost, tuning)
        self.num_steps = 0
        """Decode steps with this number of rows."""
        self.idle = 0
        """Steps that draft nothing before the next choice."""
        self.measured_at = [0] * (max_drafts + 1)
        """By count: the step in which it was last measured."""
        self.granted = 0
        """The last step's count."""
        self.counts: list[int] = []
        """What each row got of it."""
        self.is_single_row = False
        """One row alone may draft."""
        self.probe: int | None = None
        """The count that the last step probed."""
        self.probe_again: int | None = None
        """The count to probe next, because all drafts of the last probe were accepted."""
        self.num_probes = 0
        """Probes in a row so far."""

    def age(self, count: int) -> int:
        """Steps since this many drafts were last measured."""
        return self.num_steps - self.measured_at[count]


class DraftController:
    """Grants drafts to the rows of decode steps. Owned by the scheduler's thread.

    max_drafts: the most a row may get. adaptive: False grants that always.
    """

    def __init__(self, max_drafts: int, *, adaptive: bool = True, tuning: Tuning = TUNING) -> None:
        self.max_drafts = max_drafts
        self.adaptive = adaptive
        self.tuning = tuning
        self.num_drafts = 0
        """Verifications that had drafts."""
        self.num_drafted = 0
        """Tokens that were drafted."""
        self.num_accepted = 0
        """Drafted tokens that were accepted."""
        self.accepted_by_position = [0] * max_drafts
        self._rates = AcceptanceRates(max_drafts, tuning)
        self._found = FoundShare(tuning)
        self._loads: dict[int, _Load] = {}
        self._step = 0
        self._eligible = 1.0
        """Share of rows that get drafts where any are granted."""
        self._overhead = 0.0
        """Mean seconds per step with drafts in which a draft model catches up."""
        self._reading = 0.0
        """Seconds in which a draft model reads one prompt."""
        self._num_readings = 0

    def grant(self, rows: Sequence[tuple[RequestDrafts, int]], limit: int | None = None) -> list[int]:
        """How many tokens each row may draft in a decode step.

        rows: (record, room) of each; room: tokens that the row has room for. limit: the step's own, per row.
        """
        most = self.max_drafts if limit is None else max(min(self.max_drafts, limit), 0)
        if not self.adaptive:
            return [max(min(room, most), 0) for _, room in rows]
        load = self._load(len(rows))
        load.num_steps += 1
        self._step += 1
        if load.idle:
            load.idle -= 1
            load.granted, load.counts = 0, []
            return [0] * len(rows)
        load.granted = min(self._choose(load, len(rows)), most)
        counts = [max(min(room, load.granted), 0) if record.back_at <= self._step else 0 for record, room in rows]
        if load.granted:
            eligible = max(sum(count > 0 for count in counts) / len(counts), self.tuning.least_share)
            self._eligible += self.tuning.eligible_pace * (eligible - self._eligible)
        self._limit_counts(load, [record for record, _ in rows], counts)
        load.counts = counts
        return counts

    def observe(
        self,
        rows: Sequence[tuple[RequestDrafts, int, int]],
        seconds: float,
        num_caught_up: int = 0,
    ) -> None:
        """Take in a decode step.

        rows: (record, drafted, accepted) of each. seconds: of the device; 0.0 if not measured. num_caught_up: tokens
        that a draft model had to read beside the newest ones.
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
            load.probe_again = load.probe if load.num_probes < self.tuning.probes_in_a_row else None
        elif load.probe is not None:
            load.probe_again = None
        load.probe = None

    def _limit_counts(self, load: _Load, records: Sequence[RequestDrafts], counts: list[int]) -> None:
        """Cut `counts` to one row, or to a multiple of what was measured. Rows that drafted most come first."""
        if not load.cost.knows_plain:
            return
        widest = max(int(self.tuning.growth * load.cost.widest * len(counts)), 1)
        left = load.granted if load.is_single_row else widest
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
            load.credit.add_drafted(tokens, mean, seconds, is_reading=num_caught_up > 0)
        else:
            load.credit.add_plain(seconds)
        excess = max(seconds - load.cost.seconds(mean), 0.0) if num_caught_up and load.cost.knows_plain else 0.0
        if num_caught_up and num_beginners:
            # The very first reading does not count: it includes loading the draft's weights from disk.
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
            self._overhead += (excess - self._overhead) / self.tuning.overhead_steps

    def _choose(self, load: _Load, num_rows: int) -> int:
        """The count of the next step."""
        tuning = self.tuning
        load.is_single_row = False
        if load.credit.num_plain < tuning.first_steps:
            return 0 if load.credit.num_plain or load.num_steps <= tuning.first_steps else self.max_drafts
        if load.credit.balance <= 0.0:
            load.idle = tuning.idle_steps
            return 0
        if not load.cost.knows_drafts:
            load.is_single_row = True
            return int(load.age(1) > tuning.reading_steps * self._reading / load.cost.seconds(0))
        expected = [self._expect(load, num_rows, count, self._eligible) for count in range(self.max_drafts + 1)]
        best = max(range(len(expected)), key=lambda count: expected[count].pace)
        if expected[best].pace < tuning.least_gain * expected[0].pace:
            best = 0
        load.is_single_row = best == 0 and self._num_readings > 0
        if load.probe_again is not None:
            load.probe = load.probe_again = max(load.probe_again, best)
            return load.probe
        load.num_probes = 0
        if load.is_single_row:
            expected = [expected[0], self._expect(load, num_rows, 1, 1.0 / num_rows)]
        load.probe = self._due_probe(load, expected, best)
        if load.probe is not None:
            return load.probe
        if best == 0:
            is_far = max(each.pace for each in expected[1:]) < tuning.far_pace * expected[0].pace
            load.idle = 2 * tuning.idle_steps if is_far else tuning.idle_steps
        return best

    def _due_probe(self, load: _Load, expected: list[Expected], best: int) -> int | None:
        """The count that is to be measured again now, if one is."""
        tuning = self.tuning
        candidates = {0, best - 1, best + 1} & set(range(len(expected))) - {best}
        for count in sorted(candidates, key=lambda each: load.measured_at[each]):
            wait = tuning.regret_steps * expected[count].loss_beside(expected[best])
            if count:
                wait *= load.cost.confidence(expected[count].mean)
            if best == 0:
                wait += tuning.reading_steps * self._reading / expected[0].seconds
            if load.age(count) >= max(tuning.probe_steps, math.ceil(wait)):
                load.measured_at[count] = load.num_steps
                return count
        return None

    def _expect(self, load: _Load, num_rows: int, count: int, share: float) -> Expected:
        """What a step brings in which this share of the rows may draft `count` tokens."""
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
        """Accepted tokens at which this many drafts nearly break even; a few per cent where they seem to be free."""
        plain, least = load.cost.seconds(0), self.tuning.least_needed
        return max(self.tuning.break_even * (load.cost.seconds(num_drafts) / plain - 1.0), least) if plain else least

    def _load(self, num_rows: int) -> _Load:
        key = num_rows.bit_length()
        if key not in self._loads:
            self._loads[key] = _Load(self.max_drafts, self.tuning)
        return self._loads[key]
