"""Why we differ from vLLM: the tables of `docs/migration.md`, below the heading that says so.

A row's first cell names differences, as `compare.Difference.what` does: several names apart by commas in backquotes,
`*` standing for anything.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "migration.md"
HEADING = "# From vLLM, field by field"


class Row(NamedTuple):
    patterns: tuple[str, ...]
    reason: str


def rows() -> list[Row]:
    """Every row of every table below the heading."""
    text = DOCUMENT.read_text().partition(HEADING)[2]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return [Row(tuple(re.findall(r"`([^`]+)`", first)), last[-1].replace("\\|", "|")) for first, *last in cells]


def reason(what: str, known: list[Row]) -> str | None:
    return next((row.reason for row in known if any(fits(what, pattern) for pattern in row.patterns)), None)


def fits(what: str, pattern: str) -> bool:
    """`*` is the only special character: brackets are what they are."""
    return fnmatchcase(what, pattern.replace("[", "[[]"))
