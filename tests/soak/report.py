"""What a soak measured: samples over time, whether they are flat, and a picture of them (SVG, by hand)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

WARM_UP = 0.25
"""Share of a run that is left out of slopes: caches fill, allocators settle."""
_GROWTH = 0.03
_GROWTH_MIB = 4.0
_MOST_POINTS = 300


@dataclass(frozen=True)
class Sample:
    """seconds: since the start. Memory in MiB: resident, of the server's and of the engine's process."""

    seconds: float
    server_mib: float
    engine_mib: float
    running: float
    waiting: float
    files: float
    threads: float


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Theil-Sen: the median of the slopes between all pairs. A few outliers do not move it."""
    pairs = itertools.combinations(zip(xs, ys, strict=True), 2)
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs if x1 != x2]
    return statistics.median(slopes) if slopes else 0.0


def growth(samples: Sequence[Sample], name: str) -> float:
    """By how much a series rises over the measured time, after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    kept = kept[:: max(1, len(kept) // _MOST_POINTS)]
    if len(kept) < 3:
        return 0.0
    xs, ys = [sample.seconds for sample in kept], [getattr(sample, name) for sample in kept]
    return slope(xs, ys) * (xs[-1] - xs[0])


def faults(samples: Sequence[Sample]) -> list[str]:
    """What is not flat, or not empty at the end."""
    found = []
    for name in ("server_mib", "engine_mib"):
        grown, usual = growth(samples, name), statistics.median(getattr(sample, name) for sample in samples)
        if grown > max(_GROWTH_MIB, _GROWTH * usual):
            found.append(f"{name} rises: {grown:+.1f} MiB over the run, at {usual:.0f} MiB")
    for name in ("files", "threads", "waiting"):
        usual = statistics.median(getattr(sample, name) for sample in samples)
        if growth(samples, name) > max(4.0, 0.2 * usual):
            found.append(f"{name} rises: {growth(samples, name):+.1f} over the run, at {usual:.0f}")
    last = samples[-1]
    if last.running or last.waiting:
        found.append(f"at the end {last.running:.0f} rows are held and {last.waiting:.0f} requests wait")
    return found


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    lines = [",".join(field.name for field in fields(Sample))]
    lines += [",".join(f"{value:g}" for value in astuple(sample)) for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_PANELS = (
    ("Memory (MiB)", {"server_mib": "server", "engine_mib": "engine"}),
    ("Requests", {"running": "running", "waiting": "waiting"}),
    ("Handles", {"files": "files", "threads": "threads"}),
)
_COLOURS = ("#2f7d6b", "#b9772c")
_WIDTH, _HEIGHT, _LEFT, _TOP = 860, 150, 64, 34


def write_svg(samples: Sequence[Sample], title: str, path: Path) -> None:
    total = _TOP + len(_PANELS) * (_HEIGHT + 44)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + _LEFT + 24} {total}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#44504d">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{title}</text>',
    ]
    for index, (name, series) in enumerate(_PANELS):
        parts += _panel(samples, name, series, _TOP + 20 + index * (_HEIGHT + 44))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(samples: Sequence[Sample], name: str, series: dict[str, str], top: int) -> list[str]:
    end = max(samples[-1].seconds, 1e-9)
    highest = max(getattr(sample, field) for sample in samples for field in series) * 1.1 or 1.0
    parts = [f'<text x="{_LEFT}" y="{top - 6}" font-weight="600">{name}</text>']
    for share in (0.0, 0.5, 1.0):
        y = top + _HEIGHT * (1 - share)
        parts.append(f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="#e1e7e4"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{highest * share:.0f}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{top + _HEIGHT + 16}" text-anchor="end">{end / 60:.0f} minutes</text>')
    for index, (field, label) in enumerate(series.items()):
        points = " ".join(
            f"{_LEFT + _WIDTH * sample.seconds / end:.1f},{top + _HEIGHT * (1 - getattr(sample, field) / highest):.1f}"
            for sample in samples
        )
        colour = _COLOURS[index]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH - 130 + 70 * index}" y="{top - 6}" fill="{colour}">{label}</text>')
    return parts
