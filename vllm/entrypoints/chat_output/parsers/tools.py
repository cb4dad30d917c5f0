"""Tool calls in the forms that models were taught to write them, given while they are written.

What looks like a call and is none stays content. A call that is cut off before its arguments is neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from vllm.entrypoints.chat_output.parsers.base import Content, Cutter, Marker, Part
from vllm.entrypoints.chat_output.parsers.calls import CallsReader

_BLANK = re.compile(r"\s*")
_LINE = re.compile(r"\n[^\S\n]*(?=\S)")
"""From the end of a line to the first character of the next one that is not blank."""


class Reader(Protocol):
    """What calls are read by, from their opening on.

    begun: whether a call came. ended: whether what follows, from where `feed` stopped, is none of the calls'.
    """

    begun: bool
    ended: bool

    def holds(self, mark: str) -> bool:
        """Whether a mark that comes now is part of the calls: in a string, say, where it ends nothing."""
        ...

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        """What became certain of the text from `position` on, and where the calls ended, or the text did."""
        ...

    def finish(self, is_cut: bool) -> list[Part]:
        """What is left. is_cut: the output ends here, else a mark ends the calls."""
        ...


class CallsParser:
    """Finds calls among other text: behind a mark, or where the output begins as they do.

    marks: what calls stand behind. close: what ends them, if something does. inner_marks: further ones, which only mean
    something to the reader. All marks may stand in the calls' strings.
    openings: characters that calls without a mark begin with, where the output begins; opens_lines: or a line of it.
    White space before calls is dropped.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    close: ClassVar[str | None] = None
    inner_marks: ClassVar[tuple[str, ...]] = ()
    openings: ClassVar[str] = ""
    opens_lines: ClassVar[bool] = False

    def __init__(self) -> None:
        self._cutter = Cutter(*self.marks, *((self.close,) if self.close else ()), *self.inner_marks)
        self._reader: Reader | None = None
        self._space: list[str] = []
        self._is_blank = self._line_is_blank = True
        self._close_is_due = False
        self.tool_names: frozenset[str] | None = None

    def set_tools(self, tools: Sequence[dict[str, Any]]) -> None:
        """Those of the request, before the output comes."""
        self.tool_names = frozenset(tool["function"]["name"] for tool in tools)

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        parts = self._take_held()
        if self._reader is not None:
            parts += self._end_calls(is_cut=True)
        return parts + ([Content("".join(self._space))] if self._space else [])

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        """mark: what the calls stand behind, content if none comes; "" where they have none. among_text: they stand
        behind other text."""
        raise NotImplementedError

    def _take_held(self) -> list[Part]:
        held = self._cutter.finish()
        return self._take(held) if held else []

    def _take(self, piece: str | Marker) -> list[Part]:
        if isinstance(piece, str):
            return self._take_text(piece)
        if self._reader is not None and self._reader.holds(piece.text):
            return self._take_text(piece.text)
        return self._end_calls() + self._take_mark(piece.text)

    def _take_mark(self, mark: str) -> list[Part]:
        """One outside of calls. What closes them is dropped behind a call, also where something stands between."""
        if mark in self.marks:
            self._open(mark)
            return []
        if mark == self.close and self._close_is_due:
            self._close_is_due, self._space = False, []
            return []
        return self._content(mark)

    def _take_text(self, text: str) -> list[Part]:
        parts: list[Part] = []
        position = 0
        while position < len(text):
            if self._reader is None:
                start = self._opening(text, position)
                parts += self._content(text[position:start])
                position = start
                if start < len(text):
                    self._open("")
            else:
                found, position = self._reader.feed(text, position)
                parts += self._pass_on(found)
                if self._reader.ended:
                    self._close_is_due, self._reader = self._reader.begun, None
        return parts

    def _open(self, mark: str) -> None:
        self._reader = self.new_reader(mark, among_text=not self._is_blank)
        self._close_is_due = False

    def _end_calls(self, is_cut: bool = False) -> list[Part]:
        reader, self._reader = self._reader, None
        if reader is None:
            return []
        found = reader.finish(is_cut)
        if is_cut and not found:
            self._space = []
        parts = self._pass_on(found)
        self._close_is_due = reader.begun
        return parts

    def _opening(self, text: str, position: int) -> int:
        """Where calls without a mark begin; the end of the text if they do not."""
        start = _BLANK.match(text, position).end() if self._line_is_blank else len(text)  # type: ignore[union-attr]
        if start < len(text) and text[start] in self.openings and (self._is_blank or self.opens_lines):
            return start
        while self.opens_lines and (found := _LINE.search(text, position)):
            if text[found.end()] in self.openings:
                return found.end()
            position = found.end()
        return len(text)

    def _pass_on(self, parts: list[Part]) -> list[Part]:
        passed: list[Part] = []
        for part in parts:
            if isinstance(part, Content):
                passed += self._content(part.text)
            else:
                self._space, self._is_blank, self._line_is_blank = [], False, False
                passed.append(part)
        return passed

    def _content(self, text: str) -> list[Part]:
        """The white space at the end waits: it is dropped if a call follows."""
        kept = text.rstrip()
        space = text[len(kept) :]
        self._is_blank = self._is_blank and not kept
        self._line_is_blank = "\n" in space or (self._line_is_blank and not kept)
        if kept:
            before, self._space = "".join(self._space), [space]
            return [Content(before + kept)]
        if space:
            self._space.append(space)
        return []


class HermesParser(CallsParser):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"
    marks = (OPEN,)
    close = CLOSE

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        return CallsReader(("arguments",), listed=False, held=mark)


class Llama3JsonParser(CallsParser):
    """`{"name": ..., "parameters": {...}}`, several with `;` between them, behind `<|python_tag|>` or not."""

    marks = ("<|python_tag|>",)
    openings = "{"
    opens_lines = True

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        keys = ("parameters", "arguments")
        if mark:
            return CallsReader(keys, listed=False, held=mark)
        return CallsReader(keys, listed=False, is_sure=False, among_text=among_text, tool_names=self.tool_names)


class MistralParser(CallsParser):
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`."""

    marks = ("[TOOL_CALLS]",)

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        return CallsReader(("arguments",), listed=True, held=mark)


class GraniteParser(CallsParser):
    """`[{"name": ..., "arguments": {...}}, ...]`, behind `<|tool_call|>` or `<tool_call>`, or at the beginning."""

    marks = ("<|tool_call|>", "<tool_call>")
    openings = "["

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        if mark:
            return CallsReader(("arguments",), listed=True, held=mark)
        return CallsReader(("arguments",), listed=True, is_sure=False, tool_names=self.tool_names)
