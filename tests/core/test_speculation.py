"""How many drafts are granted, against rows that accept with a known probability on devices of known cost."""

from __future__ import annotations

import dataclasses
import random
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm.core.drafting import tuning as tuning_module
from vllm.core.drafting.acceptance import AcceptanceRates, FoundShare, RequestDrafts
from vllm.core.drafting.controller import DraftController
from vllm.core.drafting.cost import StepCost
from vllm.core.drafting.tuning import TUNING, Tuning

MOST = 5


@dataclass(frozen=True)
class Machine:
    """Seconds of a step: a pass over the weights takes 1, each further token per_token, each draft per_pass."""

    per_token: float
    per_pass: float = 0.0

    def seconds(self, num_rows: int, num_drafts: float) -> float:
        return 1.0 + self.per_token * (num_rows * (1 + num_drafts) - 1) + self.per_pass * num_drafts

    def gain(self, num_rows: int, num_drafts: int, rate: float) -> float:
        """Tokens a second against plain decoding."""
        tokens = sum(rate**place for place in range(num_drafts + 1))
        return tokens * self.seconds(num_rows, 0) / self.seconds(num_rows, num_drafts)

    def best_gain(self, num_rows: int, rate: float) -> float:
        return max(self.gain(num_rows, count, rate) for count in range(MOST + 1))


@dataclass
class Run:
    tokens: int = 0
    seconds: float = 0.0


def run(
    machine: Machine,
    rates: list[float],
    steps: int,
    *,
    seed: int = 0,
    noise: float = 0.05,
    found: float = 1.0,
    controller: DraftController | None = None,
) -> tuple[Run, list[int]]:
    """Steps of rows that accept a draft with their own probability: what they took, and drafts granted by row.

    found: the chance that a row that may draft has something to draft.
    """
    rng, records = random.Random(seed), [RequestDrafts() for _ in rates]
    controller = controller or DraftController(MOST)
    result, granted = Run(), [0] * len(rates)
    for _ in range(steps):
        counts = controller.grant([(record, MOST) for record in records])
        rows = []
        for row, (record, count) in enumerate(zip(records, counts, strict=True)):
            drafted = count if found == 1.0 or rng.random() < found else 0
            accepted = 0
            while accepted < drafted and rng.random() < rates[row]:
                accepted += 1
            rows.append((record, drafted, accepted))
            granted[row] += count
            result.tokens += accepted + 1
        seconds = machine.seconds(len(rates), sum(drafted for _, drafted, _ in rows) / len(rates))
        result.seconds += seconds
        controller.observe(rows, seconds * (1.0 + rng.expovariate(1.0 / noise)))
    return result, granted


def gain(machine: Machine, num_rows: int, rate: float, **options: Any) -> float:
    result, _ = run(machine, [rate] * num_rows, 1000, **options)
    return result.tokens / result.seconds / (num_rows / machine.seconds(num_rows, 0))


MACHINES = [Machine(0.06), Machine(0.06, 0.15), Machine(0.3, 0.2), Machine(0.002, 0.5)]


@settings(max_examples=40)
@given(
    machine=st.sampled_from(MACHINES),
    num_rows=st.sampled_from([1, 2, 4, 16]),
    rate=st.floats(0, 1),
    found=st.sampled_from([1.0, 0.2, 0.5]),
    seed=st.integers(0, 2**32),
)
@example(machine=Machine(0.3, 0.2), num_rows=16, rate=0.875, found=0.2, seed=0)
def test_drafting_is_never_slower_than_plain_decoding_by_more_than_three_per_cent(
    machine, num_rows, rate, found, seed
) -> None:
    assert gain(machine, num_rows, rate, found=found, seed=seed) > 0.97


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("num_rows", [1, 4, 16])
@pytest.mark.parametrize("rate", [0.6, 0.8, 0.95])
def test_most_of_what_can_be_gained_is(machine: Machine, num_rows: int, rate: float) -> None:
    most = machine.best_gain(num_rows, rate)
    gains = [gain(machine, num_rows, rate, seed=seed) for seed in range(4)]
    wanted = 1.0 + 0.8 * (most - 1.0)
    assert statistics.fmean(gains) > wanted - 0.03
    assert min(gains) > wanted - 0.04


TOKENS = (1, 4, 8, 9, 16, 17, 20, 24, 32, 64, 200)
MILLISECONDS = (2.2, 2.8, 3.4, 4.1, 5.9, 6.7, 7.5, 8.4, 11.0, 21.0, 66.0)
"""What a pass over so many tokens was measured to take (SmolLM2-135M, 4 bits, two cores with AVX-512)."""


class TextRun:
    """Rows whose text has stretches in which a lookup finds drafts, on a machine that others disturb.

    share: of the text in such stretches, of 20 tokens on average. rate: of drafts in them that are accepted. disturbed:
    the share of steps that take twice as long or eight times; all vary by a few per cent, and wander.
    """

    def __init__(self, num_rows: int, share: float, rate: float, seed: int, disturbed: float) -> None:
        self.rng = random.Random(seed)
        self.share, self.rate, self.disturbed = share, rate, disturbed
        self.records = [RequestDrafts() for _ in range(num_rows)]
        self.inside = [self.rng.random() < share for _ in range(num_rows)]
        self.speed = 1.0
        self.tokens, self.seconds = 0, 0.0

    def true_seconds(self, num_drafts: int) -> float:
        return float(np.interp(len(self.records) + num_drafts, TOKENS, MILLISECONDS))

    def measured(self, seconds: float) -> float:
        self.speed += 0.02 * (1.0 - self.speed) + self.rng.gauss(0, 0.01)
        disturbance = self.rng.choice((2.0, 2.0, 8.0)) if self.rng.random() < self.disturbed else 1.0
        return seconds * self.speed * (1.0 + self.rng.expovariate(1.0 / 0.1)) * disturbance

    def step(self, controller: DraftController, room: int = 8) -> None:
        counts = controller.grant([(record, room) for record in self.records])
        rows = []
        for row, (record, count) in enumerate(zip(self.records, counts, strict=True)):
            drafted = count if self.inside[row] else 0
            accepted = next((place for place in range(drafted) if self.rng.random() > self.rate), drafted)
            rows.append((record, drafted, accepted))
            for _ in range(accepted + 1):
                self._read_on(row)
        seconds = self.true_seconds(sum(drafted for _, drafted, _ in rows))
        self.seconds += seconds
        self.tokens += sum(accepted + 1 for _, _, accepted in rows)
        controller.observe(rows, self.measured(seconds))

    def _read_on(self, row: int) -> None:
        leaves = 1 / 20
        enters = leaves * self.share / (1.0 - self.share) if self.share < 1.0 else 1.0
        self.inside[row] ^= self.rng.random() < (leaves if self.inside[row] else enters)

    @property
    def gain(self) -> float:
        return self.tokens / self.seconds * self.true_seconds(0) / len(self.records)


@settings(max_examples=40)
@given(
    num_rows=st.sampled_from([1, 4, 8, 16]),
    share=st.sampled_from([0.05, 0.3, 0.6, 1.0]),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_on_a_disturbed_machine_little_is_lost(num_rows, share, rate, seed) -> None:
    """One step in seven takes twice to eight times as long, so that no single measurement can be believed."""
    text, controller = TextRun(num_rows, share, rate, seed, disturbed=0.15), DraftController(8)
    for _ in range(1000):
        text.step(controller)
    assert text.gain > 0.97


@pytest.mark.parametrize(
    ("num_rows", "share", "rate", "least"), [(1, 0.95, 0.95, 3.0), (4, 0.95, 0.95, 1.25), (4, 0.6, 0.8, 1.08)]
)
@pytest.mark.parametrize("seed", range(4))
def test_on_a_disturbed_machine_what_pays_is_found(num_rows, share, rate, least, seed) -> None:
    text, controller = TextRun(num_rows, share, rate, seed, disturbed=0.15), DraftController(8)
    for _ in range(1000):
        text.step(controller)
    assert text.gain > least


def test_what_is_misjudged_costs_no_more_than_the_credit() -> None:
    """The first drafts come for nothing and are all accepted; then none is, and each takes a plain step's time."""
    controller, record = DraftController(MOST), RequestDrafts()
    seconds = tokens = 0.0
    for step in range(2000):
        (count,) = controller.grant([(record, MOST)])
        good = step < 200
        took = 1.0 + (0.0 if good else 1.0) * count
        controller.observe([(record, count, count if good else 0)], took)
        if not good:
            seconds += took
            tokens += 1.0
    clipped = (TUNING.late_steps - 1) * (MOST - 1)
    assert seconds - tokens < TUNING.most_credit + MOST + clipped + TUNING.allowance * tokens


def test_the_share_of_a_text_that_has_drafts_does_not_depend_on_how_many_are_drafted() -> None:
    """Where more are accepted, fewer steps find something; the share of tokens stays."""
    shares = []
    for count in (1, 5):
        rng, found, inside = random.Random(3), FoundShare(), False
        values = []
        for _ in range(20000):
            tokens = count + 1 if inside else 1
            found.observe(tokens if inside else 0, 0 if inside else 1)
            for _token in range(tokens):
                inside ^= rng.random() < 1 / 40
            values.append(found.value)
        shares.append(sum(values) / len(values))
    assert all(abs(share - 0.5) < 0.1 for share in shares)


def test_where_few_rows_find_drafts_it_is_their_share_that_counts() -> None:
    """Lookups that nearly always succeed, for a fifth of the rows: long drafts pay for one row alone, not for eight."""
    assert gain(Machine(0.06), 1, 0.9, found=0.2) > 1.15
    assert gain(Machine(0.3), 8, 0.9, found=0.2) > 0.98


def test_where_nothing_is_drafted_a_draft_that_reads_is_tried_by_one_row_alone() -> None:
    controller, machine, rng = DraftController(MOST), Machine(0.3, 0.2), random.Random(0)
    while not sum(counts := controller.grant([(RequestDrafts(), MOST)] * 16)):
        controller.observe([(RequestDrafts(), 0, 0)] * 16, machine.seconds(16, 0))
    controller.observe([(RequestDrafts(), 0, 0)] * 16, machine.seconds(16, 0) + 1.0, num_caught_up=100)
    run(machine, [0.3] * 16, 300, controller=controller)
    records = [RequestDrafts() for _ in range(16)]
    tries = 0
    for _ in range(200):
        counts = controller.grant([(record, MOST) for record in records])
        assert sum(count > 0 for count in counts) <= 1
        tries += sum(counts)
        rows = [(record, count, int(rng.random() < 0.3)) for record, count in zip(records, counts, strict=True)]
        controller.observe(rows, machine.seconds(16, sum(counts) / 16))
    assert tries, "what is never tried is never found to have become better"


@pytest.mark.parametrize("num_rows", [1, 4, 16])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_prompts_that_a_draft_would_have_to_read_for_nothing_are_not_read(num_rows: int, rate: float) -> None:
    """Requests come and go; a row's first drafts cost the reading of its prompt, as much as four steps of one row.

    Later ones cost the reading of what came since, which is little, and says nothing of prompts.
    """
    controller, machine, rng = DraftController(MOST), Machine(0.25, 0.15), random.Random(1)
    seconds = plain = 0.0
    for _ in range(16):
        records: list[RequestDrafts] = []
        known: list[int] = []
        for step in range(128):
            if step % 2 == 0 and len(records) < num_rows:
                records.append(RequestDrafts())
                known.append(step)
            counts = controller.grant([(record, MOST) for record in records])
            unread = sum(count > 0 and not record.num_drafts for record, count in zip(records, counts, strict=True))
            rows = []
            for record, count in zip(records, counts, strict=True):
                accepted = next((place for place in range(count) if rng.random() > rate), count)
                rows.append((record, count, accepted))
            gaps = sum(step - known[row] for row, count in enumerate(counts) if count and records[row].num_drafts)
            known = [step + 1 if count else before for before, count in zip(known, counts, strict=True)]
            took = machine.seconds(len(records), sum(counts) / len(records)) + 4.0 * unread + 0.01 * gaps
            seconds += took
            plain += machine.seconds(len(records), 0) * (1 + sum(accepted for _, _, accepted in rows) / len(records))
            controller.observe(rows, took, 100 * unread + gaps)
    assert seconds < plain / 0.97


def test_a_little_catching_up_says_nothing_of_what_a_prompt_costs_to_read() -> None:
    controller, num_tries = DraftController(MOST), 0
    for _ in range(3):
        record, unread = RequestDrafts(), 100
        for _ in range(1000):
            (count,) = controller.grant([(record, MOST)])
            caught_up = unread if count else 0
            unread = 0 if count else unread + 1
            seconds = 1.0 + 0.5 * count + (4.0 if caught_up and not record.num_drafts else 0.001 * caught_up)
            num_tries += count > 0
            controller.observe([(record, count, 0)], seconds, caught_up)
    assert num_tries < 3 * 16 + 3000 / (4 * TUNING.reading_steps)


def test_with_many_rows_nothing_is_drafted_where_tokens_are_not_free() -> None:
    _, granted = run(Machine(0.3, 0.2), [0.7] * 32, 500)
    assert sum(granted) < 0.05 * 32 * 500 * MOST


def test_a_row_whose_drafts_fail_is_left_out_and_the_others_are_not() -> None:
    _, granted = run(Machine(0.02, 0.1), [0.9, 0.9, 0.9, 0.0], 600)
    assert granted[3] < 0.2 * min(granted[:3])


def test_it_begins_again_when_texts_change() -> None:
    controller, machine = DraftController(MOST), Machine(0.05, 0.1)
    run(machine, [0.0], 400, controller=controller)
    result, _ = run(machine, [0.95], 1500, controller=controller)
    assert result.tokens / result.seconds > 1.7


def test_what_a_draft_model_must_read_first_counts_against_drafting() -> None:
    """Requests so short that reading their prompts costs more than their drafts bring: drafting stops."""
    controller, machine = DraftController(MOST), Machine(0.05, 0.1)
    records = [RequestDrafts()]
    granted = []
    for step in range(1200):
        record = records[0] if step % 4 else RequestDrafts()
        records[0] = record
        (count,) = controller.grant([(record, MOST)])
        reads = count and step % 4 == 0
        granted.append(count)
        seconds = machine.seconds(1, count) + (20.0 if reads else 0.0)
        controller.observe([(record, count, count)], seconds, 100 if reads else 0)
    assert sum(granted[800:]) < 0.3 * 400 * MOST


def test_not_adaptive_is_always_the_most_that_may_be() -> None:
    controller = DraftController(MOST, adaptive=False)
    rows = [(RequestDrafts(), 9), (RequestDrafts(), 2), (RequestDrafts(), 0), (RequestDrafts(), -1)]
    for _ in range(10):
        assert controller.grant(rows) == [5, 2, 0, 0]
        assert controller.grant(rows, limit=3) == [3, 2, 0, 0]
        assert controller.grant(rows, limit=-1) == [0, 0, 0, 0]
        controller.observe([(record, 1, 0) for record, _ in rows], 1.0)


@settings(max_examples=200)
@given(data=st.data(), most=st.integers(1, 8), adaptive=st.booleans())
def test_never_more_than_there_is_room_for(data: st.DataObject, most: int, adaptive: bool) -> None:
    controller = DraftController(most, adaptive=adaptive)
    records = [RequestDrafts() for _ in range(6)]
    for _ in range(data.draw(st.integers(1, 40))):
        rows = [(record, data.draw(st.integers(-1, 9))) for record in records[: data.draw(st.integers(1, 6))]]
        limit = data.draw(st.sampled_from([None, 0, 2, 20]))
        counts = controller.grant(rows, limit)
        for (_, room), count in zip(rows, counts, strict=True):
            assert 0 <= count <= max(min(room, most, most if limit is None else limit), 0)
        drafted = [data.draw(st.integers(0, count)) for count in counts]
        seen = [(row[0], d, data.draw(st.integers(0, d))) for row, d in zip(rows, drafted, strict=True)]
        controller.observe(
            seen, data.draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])), data.draw(st.sampled_from([0, 0, 9]))
        )
    assert controller.num_accepted == sum(controller.accepted_by_position) <= controller.num_drafted
    assert controller.num_drafted == sum(record.num_drafted for record in records)


def test_rates_follow_what_is_seen() -> None:
    rates, rng = AcceptanceRates(3), random.Random(1)
    for _ in range(2000):
        rates.observe(3, next((place for place in range(3) if rng.random() > 0.5), 3))
    assert rates.tokens(0) == 1.0
    assert abs(rates.tokens(3) - (1 + 0.5 + 0.25 + 0.125)) < 0.25


def test_costs_between_measured_counts_lie_between_them() -> None:
    cost = StepCost()
    assert cost.seconds(2) == 0.0
    cost.observe(0, 1.0)
    assert cost.seconds(3) == 1.0
    for seconds in (3.0, 3.0, 90.0):
        cost.observe(4, seconds)
    assert (cost.seconds(1), cost.seconds(4), cost.seconds(6)) == (1.5, 3.0, 3.5)


def test_each_number_says_its_unit_and_its_source() -> None:
    source = Path(tuning_module.__file__).read_text()
    for field in dataclasses.fields(Tuning):
        (text,) = re.findall(rf'    {field.name}: \w+ = [^\n]+\n    """(.*?)"""', source, re.DOTALL)
        assert "Source: " in text, field.name


def test_other_numbers_can_be_tried() -> None:
    """A controller that asks for a gain that cannot be had grants nothing but probes."""
    controller = DraftController(MOST, tuning=Tuning(least_gain=100.0))
    _, granted = run(Machine(0.002), [0.95] * 4, 400, controller=controller)
    _, usual = run(Machine(0.002), [0.95] * 4, 400)
    assert sum(granted) < 0.5 * sum(usual)
