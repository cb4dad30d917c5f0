"""The long run of `tests.soak.kv`, cut short."""

from __future__ import annotations

from tests.soak.kv import run


def test_some_thousand_steps_of_every_layout() -> None:
    totals = run(num_steps=12_000, seed=3)
    assert totals["steps"] >= 12_000
    assert totals["hits"] > 0 and totals["external_hits"] > 0
