"""Faults of a configuration, gathered so that one error names them all.

A fault says what was given, why it cannot be, and what would work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is the option or key at fault, `given` its value as the user may write it ("" if that says nothing).

    `why` may begin with the name itself.
    """

    name: str
    given: str
    why: str
    fix: str

    def __str__(self) -> str:
        subject = f"{self.name}={self.given}" if self.given else self.name
        said = self.why if self.why.startswith(f"{self.name}=") else f"{subject}: {self.why}"
        return f"{said}. {self.fix}" if self.fix else said


class NeuronConfigError(ValueError):
    """A configuration that cannot run. `faults` holds every reason found, not only the first."""

    def __init__(self, faults: Sequence[Fault], what: str = "the Neuron configuration") -> None:
        self.faults = list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{count} in {what}:", *(f"  - {fault}" for fault in self.faults)]))


class Faults:
    """A growing list of faults, and notes: what was given, has no effect or only one meaning, and is no fault.

    A check over several keys (`involves`) is not reported when one of them is at fault by itself, since that one's real
    value is unknown.
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []
        self.notes: list[str] = []
        self._unreadable: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.found)

    def unreadable(self, name: str, given: Any, why: str, fix: str = "") -> None:
        """`name`'s value cannot be used at all; later faults that involve it are not reported."""
        self._unreadable.add(name)
        self.found.append(Fault(name, shown(given), why, fix))

    def add(self, name: str, given: Any, why: str, fix: str = "", involves: Iterable[str] = ()) -> None:
        if self._unreadable.isdisjoint((name, *involves)):
            self.found.append(Fault(name, shown(given), why, fix))

    def extend(self, faults: Iterable[Fault], prefix: str = "") -> None:
        self.found.extend(replace(fault, name=prefix + fault.name) for fault in faults)

    def absorb(self, other: Faults) -> None:
        """Take in all that another list has found."""
        self.found += other.found
        self.notes += other.notes
        self._unreadable |= other._unreadable

    def note(self, text: str) -> None:
        """Something that a user should read, as a sentence for the log."""
        if text not in self.notes:
            self.notes.append(text)

    def mark_unreadable(self, name: str) -> None:
        self._unreadable.add(name)

    def raise_if_any(self, what: str = "the Neuron configuration") -> None:
        if self.found:
            raise NeuronConfigError(self.found, what)


NOTHING = object()
"""`given` of a fault whose value says nothing."""


def shown(value: Any) -> str:
    """A value as an error shows it: short, on one line."""
    if value is NOTHING:
        return ""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """ "Did you mean x?" for the nearest known name, or the list of known names where they are few, or ""."""
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {lowered[close[0]]!r}?"
    return f"Known: {', '.join(names)}" if len(names) <= 12 else ""
