"""The soak finds what it is for, and a short one passes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.report import Sample, faults, slope, write_svg

FLAT = Sample(0, 200, 150, 3, 0, 40, 20)


def run_of(change: Callable[[float], dict[str, float]], num: int = 200) -> list[Sample]:
    """An hour of samples with noise; `change` gives what differs from FLAT, by the share of the time that passed."""
    rng = random.Random(0)
    samples = []
    for i in range(num):
        noisy = replace(FLAT, seconds=i * 3600 / num, server_mib=200 + rng.gauss(0, 2), engine_mib=150 + rng.random())
        samples.append(replace(noisy, **change(i / num)))
    return [*samples, replace(samples[-1], running=0, waiting=0)]


def test_flat_passes() -> None:
    assert not faults(run_of(lambda share: {}))
    assert not faults(run_of(lambda share: {"server_mib": 150 + 50 * min(1, 5 * share)})), "a warm-up is no slope"


@pytest.mark.parametrize(
    "change",
    [
        lambda share: {"server_mib": 200 + 20 * share},
        lambda share: {"engine_mib": 150 + 12 * share},
        lambda share: {"files": 40 + 60 * share},
        lambda share: {"threads": 20 + 20 * share},
        lambda share: {"waiting": 30 * share},
    ],
)
def test_slope_fails(change: Callable[[float], dict[str, float]]) -> None:
    (fault,) = faults(run_of(change))
    assert "rises" in fault


def test_what_is_held_at_the_end_fails() -> None:
    samples = run_of(lambda share: {})
    assert "held" in faults([*samples, replace(samples[-1], running=1)])[0]


def test_slope_ignores_outliers() -> None:
    xs = list(range(50))
    assert slope(xs, [2.0 * x if x % 10 else 1e6 for x in xs]) == pytest.approx(2.0, abs=0.3)


def test_short_soak(tmp_path: Path) -> None:
    words = ["--minutes", "0.1", "--rate", "20", "--interval", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "tests.soak", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "samples.csv").read_text().count("\n") > 4
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == 6


def test_picture_is_well_formed(tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    write_svg(run_of(lambda share: {}), "a title", tmp_path / "x.svg")
    assert len(ElementTree.parse(tmp_path / "x.svg").getroot()) > 10
