"""From measurements of several engines to a table: medians of undisturbed runs, and ratios.

A cell is the best of an engine's variants, each the median of its undisturbed runs (of all runs where none was
undisturbed; then it is marked with *). A ratio above 1 always means that ours is better.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from machine import Limits, is_disturbed
from model_files import WIDTHS

OURS = "ours"
LOWER_IS_BETTER = ("first token s", "ttft ms", "itl ms")


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement. weights: what the engine makes of `format`. probes: the limits before and after it."""

    engine: str
    format: str
    weights: str
    variant: str
    metric: str
    value: float
    probes: tuple[Limits, Limits]


@dataclass(frozen=True, slots=True)
class Cell:
    value: float
    runs: int
    undisturbed: int


Row = tuple[str, str, str]
"""Engine, format, weights."""


def is_lower_better(metric: str) -> bool:
    return metric.startswith(LOWER_IS_BETTER)


def cells(runs: Sequence[Run], best: Limits) -> dict[Row, dict[str, Cell]]:
    """By row and metric, in the order in which they came."""
    groups: dict[tuple[Row, str], dict[str, list[Run]]] = {}
    for run in runs:
        row = (run.engine, run.format, run.weights)
        groups.setdefault((row, run.metric), {}).setdefault(run.variant, []).append(run)
    table: dict[Row, dict[str, Cell]] = {}
    for (row, metric), variants in groups.items():
        candidates = [_cell(each, best) for each in variants.values()]
        choose = min if is_lower_better(metric) else max
        table.setdefault(row, {})[metric] = choose(candidates, key=lambda cell: cell.value)
    return table


def _cell(runs: Sequence[Run], best: Limits) -> Cell:
    quiet = [run.value for run in runs if not is_disturbed(run.probes, best)]
    return Cell(statistics.median(quiet or [run.value for run in runs]), len(runs), len(quiet))


def ratios(table: dict[Row, dict[str, Cell]]) -> list[dict[str, Any]]:
    """For each row of ours: how much better than the best peer with weights as wide, and than the best of all."""
    lines = []
    for row, ours in table.items():
        if row[0] != OURS:
            continue
        peers = [(other, found) for other, found in table.items() if other[0] != OURS]
        same = [(other, found) for other, found in peers if WIDTHS[other[1]] == WIDTHS[row[1]]]
        for against, several in (("same width", same), ("any", peers)):
            line = {metric: _ratio(metric, cell, (found for _, found in several)) for metric, cell in ours.items()}
            lines.append({"format": row[1], "against": against, "ratios": {m: r for m, r in line.items() if r}})
    return lines


def _ratio(metric: str, ours: Cell, peers: Iterable[dict[str, Cell]]) -> float | None:
    values = [found[metric].value for found in peers if metric in found]
    if not values:
        return None
    ratio = min(values) / ours.value if is_lower_better(metric) else ours.value / max(values)
    return float(f"{ratio:.3g}")


def render(table: dict[Row, dict[str, Cell]]) -> str:
    """The table and its ratios in Markdown."""
    metrics = list(dict.fromkeys(metric for row in table.values() for metric in row))
    lines = [["engine", "weights", *metrics]]
    for (engine, format, weights), row in table.items():
        label = weights if weights == format else f"{weights} of {format}"
        lines.append([engine, label, *(_shown(row.get(metric)) for metric in metrics)])
    for line in ratios(table):
        if line["ratios"]:
            title = f"{OURS} / best peer ({line['against']})"
            lines.append([title, line["format"], *(_times(line["ratios"].get(metric)) for metric in metrics)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.value:.0f}" if cell.value >= 100 else f"{cell.value:.3g}"
    return text if cell.undisturbed else text + "*"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def as_json(table: dict[Row, dict[str, Cell]]) -> list[dict[str, Any]]:
    return [
        {
            "engine": engine,
            "format": format,
            "weights": weights,
            "results": {
                metric: {"value": float(f"{cell.value:.5g}"), "runs": cell.runs, "undisturbed": cell.undisturbed}
                for metric, cell in row.items()
            },
        }
        for (engine, format, weights), row in table.items()
    ]
