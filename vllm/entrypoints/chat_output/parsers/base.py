"""What an output is made of, and the machine that cuts a text at markers as it comes.

A parser is fed an output's text piece by piece and says which parts it is made of. It reads every character once,
keeps no more than it must to decide, and says the same whatever the pieces were: fed whole, it gives a plain
answer; fed as it is generated, a stream. No parser runs or evaluates what a model wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Content(NamedTuple):
    text: str


class Reasoning(NamedTuple):
    text: str


class ToolCall(NamedTuple):
    """A whole call. arguments: the text of a JSON object."""

    name: str
    arguments: str


class CallStart(NamedTuple):
    """A call whose arguments are still being written."""

    name: str


class CallArguments(NamedTuple):
    """The next piece of the arguments of the call that began last. The pieces of one that was not broken off are the
    text of a JSON object."""

    text: str


Part = Content | Reasoning | ToolCall | CallStart | CallArguments


class OutputParser(Protocol):
    """One for each output."""

    def feed(self, text: str) -> list[Part]:
        """What has become certain with this piece."""
        ...

    def finish(self) -> list[Part]:
        """What is left when nothing more comes."""
        ...


class PlainParser:
    """All is content."""

    def feed(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        return []


class Marker(NamedTuple):
    """A marker that was found."""

    text: str


class Cutter:
    """Cuts a text at markers. What could be the beginning of one is held back until that is known."""

    def __init__(self, *markers: str) -> None:
        self._markers = markers
        self._held = ""

    def feed(self, text: str) -> Iterator[str | Marker]:
        """The text and the markers in it, in order."""
        text, self._held = self._held + text, ""
        while text:
            position, marker = self._first_marker(text)
            if marker is None:
                kept = len(text) - self._held_length(text)
                text, self._held = text[:kept], text[kept:]
                if text:
                    yield text
                return
            if position:
                yield text[:position]
            text = text[position + len(marker) :]
            yield Marker(marker)

    def finish(self) -> str:
        """What was held back, and turned out to be text."""
        held, self._held = self._held, ""
        return held

    def _first_marker(self, text: str) -> tuple[int, str | None]:
        found = [(position, marker) for marker in self._markers if (position := text.find(marker)) >= 0]
        return min(found, default=(-1, None))

    def _held_length(self, text: str) -> int:
        """Of the longest end of `text` that a marker begins with."""
        longest = max(map(len, self._markers), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(marker.startswith(text[-length:]) for marker in self._markers):
                return length
        return 0
