"""Outputs that think aloud first: a part between two markers is reasoning, what follows is content."""

from __future__ import annotations

from vllm.entrypoints.openai.parsers.base import Content, Cutter, Marker, Part, Reasoning


class ReasoningParser:
    """open, close: the markers. begun: whether the reasoning may begin without its opening marker.

    White space before the opening marker is dropped. An output that ends before the closing marker is all reasoning.
    """

    def __init__(self, open: str, close: str, begun: bool) -> None:
        self._open, self._close = Marker(open), Marker(close)
        self._cutter = Cutter(open, close)
        self._begun = begun
        self._state = "before"
        self._space: list[str] = []

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        held = self._cutter.finish()
        parts = self._take(held) if held else []
        if self._state == "before" and self._space:
            parts += self._of_kind("".join(self._space), self._begun)
        return parts

    def _take(self, piece: str | Marker) -> list[Part]:
        if self._state == "before":
            return self._take_before(piece)
        if self._state == "inside" and piece == self._close:
            self._state = "after"
            return []
        return self._of_kind(_text(piece), self._state == "inside")

    def _take_before(self, piece: str | Marker) -> list[Part]:
        if isinstance(piece, str) and piece.isspace():
            self._space.append(piece)
            return []
        if piece == self._open:
            self._state = "inside"
            return []
        if piece == self._close and self._begun:
            self._state = "after"
            return []
        self._state = "inside" if self._begun else "after"
        return self._of_kind("".join(self._space) + _text(piece), self._begun)

    def _of_kind(self, text: str, reasoning: bool) -> list[Part]:
        return [Reasoning(text) if reasoning else Content(text)]


def _text(piece: str | Marker) -> str:
    return piece if isinstance(piece, str) else piece.text


def deepseek_r1() -> ReasoningParser:
    """Templates of DeepSeek R1 and its like open the reasoning themselves."""
    return ReasoningParser("<think>", "</think>", begun=True)


def qwen3() -> ReasoningParser:
    return ReasoningParser("<think>", "</think>", begun=False)


def granite() -> ReasoningParser:
    return ReasoningParser("Here is my thought process:", "Here is my response:", begun=False)
