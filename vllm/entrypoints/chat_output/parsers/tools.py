"""Tool calls in the forms that models were taught to write them, given while they are written.

What looks like a call and is none stays content.
"""

from __future__ import annotations

from typing import Protocol

from vllm.entrypoints.chat_output.parsers.base import Content, Cutter, Marker, Part
from vllm.entrypoints.chat_output.parsers.calls import CallsReader


class Reader(Protocol):
    """What a call is read by. begun: whether one came."""

    begun: bool

    def feed(self, text: str) -> list[Part]: ...

    def finish(self) -> list[Part]: ...


class MarkedReader(Reader, Protocol):
    """Of a call between marks."""

    @property
    def in_string(self) -> bool:
        """Whether a mark that comes now is part of a string of the call's, and ends nothing."""
        ...


class HermesParser:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` among other text. White space before it is dropped.

    The marks may stand in the call's strings."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"
    marks = (OPEN, CLOSE)

    def __init__(self) -> None:
        self._cutter = Cutter(self.OPEN, self.CLOSE)
        self._reader: MarkedReader | None = None
        self._space: list[str] = []

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        parts = self._take_held()
        if self._reader is not None:
            parts += self._end_call("")
        return parts + ([Content("".join(self._space))] if self._space else [])

    def new_reader(self) -> MarkedReader:
        return CallsReader(("arguments",), listed=False, held=self.OPEN)

    def _take_held(self) -> list[Part]:
        held = self._cutter.finish()
        return self._take(held) if held else []

    def _take(self, piece: str | Marker) -> list[Part]:
        text = piece if isinstance(piece, str) else piece.text
        if self._reader is None:
            if isinstance(piece, Marker) and text == self.OPEN:
                self._reader = self.new_reader()
                return []
            return self._content(text)
        if isinstance(piece, Marker) and text == self.CLOSE and not self._reader.in_string:
            return self._end_call(text)
        return self._pass_on(self._reader.feed(text))

    def _end_call(self, close: str) -> list[Part]:
        reader, self._reader = self._reader, None
        if reader is None:
            return []
        parts = self._pass_on(reader.finish())
        return parts if reader.begun else parts + self._content(close)

    def _pass_on(self, parts: list[Part]) -> list[Part]:
        passed: list[Part] = []
        for part in parts:
            if isinstance(part, Content):
                passed += self._content(part.text)
            else:
                self._space = []
                passed.append(part)
        return passed

    def _content(self, text: str) -> list[Part]:
        """The white space at the end waits: it is dropped if a call follows."""
        kept = text.rstrip()
        if not kept:
            if text:
                self._space.append(text)
            return []
        before, self._space = "".join(self._space), [text[len(kept) :]]
        return [Content(before + kept)]


class WholeParser:
    """Forms in which the whole output is calls: known by how it begins. `marks` may stand before them."""

    marks: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._space: list[str] = []
        self._head = ""
        self._reader: Reader | None = None
        self._is_text = False

    def feed(self, text: str) -> list[Part]:
        if self._reader is not None:
            return self._reader.feed(text)
        if self._is_text:
            return [Content(text)] if text else []
        if not self._head:
            head = text.lstrip()
            self._space.append(text[: len(text) - len(head)])
            text = head
        self._head += text
        known = (*self.marks, *self.openings)
        if any(self._head.startswith(opening) for opening in known):
            return self._start_calls()
        if any(opening.startswith(self._head) for opening in known):
            return []
        self._is_text = True
        return self._begin()

    def finish(self) -> list[Part]:
        if self._reader is not None:
            return self._reader.finish()
        return [] if self._is_text else self._begin()

    def new_reader(self, held: str) -> Reader:
        """held: what is content if no call comes."""
        raise NotImplementedError

    def _begin(self) -> list[Part]:
        """How the output began, which is content after all."""
        text = "".join(self._space) + self._head
        return [Content(text)] if text else []

    def _start_calls(self) -> list[Part]:
        mark = next((mark for mark in self.marks if self._head.startswith(mark)), "")
        self._reader = self.new_reader("".join(self._space) + mark)
        return self._reader.feed(self._head[len(mark) :])


class Llama3JsonParser(WholeParser):
    """`{"name": ..., "parameters": {...}}`, several with `;` between them, `<|python_tag|>` before them or not."""

    marks = ("<|python_tag|>",)
    openings = ("{",)

    def new_reader(self, held: str) -> Reader:
        return CallsReader(("parameters", "arguments"), listed=False, held=held)


class MistralParser(WholeParser):
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`."""

    marks = ("[TOOL_CALLS]",)

    def new_reader(self, held: str) -> Reader:
        return CallsReader(("arguments",), listed=True, held=held)


class GraniteParser(WholeParser):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`; `<tool_call>` or nothing may stand before the list."""

    marks = ("<|tool_call|>", "<tool_call>")
    openings = ("[",)

    def new_reader(self, held: str) -> Reader:
        return CallsReader(("arguments",), listed=True, held=held)
