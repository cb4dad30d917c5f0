"""Outputs that think aloud first: a part between two markers is reasoning, what follows is content."""

from __future__ import annotations

from vllm.entrypoints.openai.parsers.base import Content, Cutter, Marker, Part, Reasoning


class ReasoningParser:
    """open, close: the markers. begun: whether the reasoning may begin without its opening marker.

    White space before the opening marker is dropped. An output that ends before the closing marker is all reasoning.
    """

    def __init__(self, open: str, close: str, begun: bool) -> None:
        self.open, self.close, self.begun = open, close, begun
        self._cutter = Cutter(open, close)
        self._state = "before"
        self._space: list[str] = []

    def set_prompt(self, prompt: str) -> None:
        """What the output follows, before it comes: templates may open the reasoning, or end it."""
        begun = begun_by(prompt, self.open, self.close)
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


def begun_by(prompt: str | None, open: str | None, close: str | None) -> bool | None:
    """Whether a prompt ends with the opening marker (True), the closing one (False), or neither."""
    end = (prompt or "").rstrip()
    if open is not None and end.endswith(open):
        return True
    return False if close is not None and end.endswith(close) else None


def _text(piece: str | Marker) -> str:
    return piece if isinstance(piece, str) else piece.text


def deepseek_r1() -> ReasoningParser:
    """Templates of DeepSeek R1 and its like open the reasoning themselves."""
    return ReasoningParser("<think>", "</think>", begun=True)


def qwen3() -> ReasoningParser:
    return ReasoningParser("<think>", "</think>", begun=False)


def granite() -> ReasoningParser:
    return ReasoningParser("Here is my thought process:", "Here is my response:", begun=False)
