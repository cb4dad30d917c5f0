"""Outputs that think aloud first: a part between two markers is reasoning, what follows is content."""

from __future__ import annotations

from typing import NamedTuple

from vllm.entrypoints.chat_output.parsers.base import Content, Cutter, Marker, Part, Reasoning


class Preceding(NamedTuple):
    """What an output follows. text: the prompt or, of an assistant's turn that is gone on with, that turn so far."""

    text: str
    is_turn: bool = False


class ReasoningParser:
    """open, close: the markers. begun: whether the reasoning may begin without its opening marker.

    White space before the opening marker is dropped. An output that ends before the closing marker is all reasoning.
    """

    def __init__(self, open: str, close: str, begun: bool) -> None:
        self.open, self.close, self.begun = open, close, begun
        self._cutter = Cutter(open, close)
        self._state = "before"
        self._space: list[str] = []

    def follow(self, preceding: Preceding) -> None:
        """Called before the output comes: what it follows may have opened the reasoning, or ended it."""
        begun = begun_by(preceding, self.open, self.close)
        if begun is not None:
            self._state = "inside" if begun else "after"

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        held = self._cutter.finish()
        parts = self._take(held) if held else []
        if self._state == "before" and self._space:
            parts += self._of_kind("".join(self._space), self.begun)
        return parts

    def _take(self, piece: str | Marker) -> list[Part]:
        if self._state == "before":
            return self._take_before(piece)
        if self._state == "inside" and piece == Marker(self.close):
            self._state = "after"
            return []
        return self._of_kind(_text(piece), self._state == "inside")

    def _take_before(self, piece: str | Marker) -> list[Part]:
        if isinstance(piece, str) and piece.isspace():
            self._space.append(piece)
            return []
        if piece == Marker(self.open):
            self._state = "inside"
            return []
        if piece == Marker(self.close) and self.begun:
            self._state = "after"
            return []
        self._state = "inside" if self.begun else "after"
        return self._of_kind("".join(self._space) + _text(piece), self.begun)

    def _of_kind(self, text: str, reasoning: bool) -> list[Part]:
        return [Reasoning(text) if reasoning else Content(text)]


def begun_by(preceding: Preceding, open: str | None, close: str | None) -> bool | None:
    """Whether the reasoning has begun (True), or has ended (False), before an output; None if it is yet to come.

    A template says so by what a prompt ends with; earlier turns say nothing. In a turn the last marker counts, and a
    turn without any has got beyond its reasoning.
    """
    text = preceding.text.rstrip()
    if preceding.is_turn and text:
        return _last(text, open) > _last(text, close)
    if open is not None and text.endswith(open):
        return True
    return False if close is not None and text.endswith(close) else None


def _last(text: str, mark: str | None) -> int:
    return -1 if mark is None else text.rfind(mark)


def _text(piece: str | Marker) -> str:
    return piece if isinstance(piece, str) else piece.text


def deepseek_r1() -> ReasoningParser:
    """Templates of DeepSeek R1 and its like open the reasoning themselves."""
    return ReasoningParser("<think>", "</think>", begun=True)


def qwen3() -> ReasoningParser:
    return ReasoningParser("<think>", "</think>", begun=False)


def granite() -> ReasoningParser:
    return ReasoningParser("Here is my thought process:", "Here is my response:", begun=False)
