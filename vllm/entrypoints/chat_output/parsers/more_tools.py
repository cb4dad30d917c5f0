"""Further forms of tool calls: Python-like lists of calls, XML-like calls, and JSON that was asked for by a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.chat_output.parsers.base import CallArguments, CallStart, Content, Cutter, Marker, Part
from vllm.entrypoints.chat_output.parsers.calls import CallsReader
from vllm.entrypoints.chat_output.parsers.json_text import JsonScanner, whole_value
from vllm.entrypoints.chat_output.parsers.literals import MAX_DEPTH, LiteralReader, NotALiteral
from vllm.entrypoints.chat_output.parsers.tools import HermesParser, MarkedReader, Reader, WholeParser

Tools = Sequence[dict[str, Any]]


class ArgumentsWriter:
    """Writes the JSON object of a call's arguments, one after another."""

    def __init__(self) -> None:
        self._num = 0

    def key(self, name: str) -> str:
        """What comes before a value."""
        before = ", " if self._num else "{"
        self._num += 1
        return f"{before}{json.dumps(name, ensure_ascii=False)}: "

    def end(self) -> str:
        return "}" if self._num else "{}"


class PythonicParser(WholeParser):
    """`[f(a=1, b="x"), g()]`: keyword arguments of literals. Each is given when it is complete."""

    openings = ("[",)
    END = ""

    def new_reader(self, held: str) -> Reader:
        return PythonicReader(held, self.END)


class Llama4PythonicParser(PythonicParser):
    """The same, between `<|python_start|>` and `<|python_end|>` or not."""

    marks = ("<|python_start|>",)
    END = "<|python_end|>"


class PythonicReader:
    """Cuts the list into names and arguments; each argument is read by itself, once. What is no call stays text."""

    _RUN = re.compile(r"""[^'"\\()\[\]{},]+""")
    _NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*")

    def __init__(self, held: str, end: str) -> None:
        self.begun = False
        self._end = end
        self._held = [held]
        self._state = "start"
        self._piece: list[str] = []
        self._name = ""
        self._written: ArgumentsWriter | None = None
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        position = 0
        while position < len(text):
            if self._state == "text":
                parts.append(Content(text[position:]))
                break
            run = self._RUN.match(text, position)
            piece = run[0] if run else text[position]
            position += len(piece)
            self._held.append(piece)
            parts += self._take(piece)
        return parts

    def finish(self) -> list[Part]:
        """A call that is broken off has been given as far as it came."""
        held, self._held = "".join(self._held), []
        is_end = self._state == "end" and held.strip() in ("", self._end)
        is_separator = self.begun and not held.strip(", \n\t\r")
        return [] if is_end or is_separator or not held or self._written is not None else [Content(held)]

    def _take(self, piece: str) -> list[Part]:
        """A run without marks, or one character."""
        if self._state == "end":
            goes_on = not piece.strip() or self._end.startswith("".join(self._held).strip())
            return [] if goes_on else self._give_up()
        if self._state == "start":
            if piece.strip():
                self._state = "name"
            return [] if piece == "[" or not piece.strip() else self._give_up()
        if self._state == "next":
            return self._take_next(piece)
        if self._state == "name":
            return self._take_name(piece)
        return self._take_argument(piece)

    def _take_next(self, piece: str) -> list[Part]:
        if piece == "]":
            self._state, self._held = "end", []
        elif piece == ",":
            self._state = "name"
        elif piece.strip():
            return self._give_up()
        return []

    def _take_name(self, piece: str) -> list[Part]:
        if piece == "(" and (name := self._NAME.fullmatch("".join(self._piece))):
            self._name, self._piece, self._state = name[1], [], "argument"
        elif piece == "]" and self.begun and not "".join(self._piece).strip():
            self._state, self._held = "end", []
        elif piece in "'\"\\()[]{},":
            return self._give_up()
        else:
            self._piece.append(piece)
        return []

    def _take_argument(self, piece: str) -> list[Part]:
        if not self._quote and not self._depth and piece in (",", ")"):
            return self._end_argument(piece == ")")
        self._piece.append(piece)
        if self._quote:
            closes = piece == self._quote and not self._escaped
            self._escaped = piece == "\\" and not self._escaped
            self._quote = "" if closes else self._quote
        elif piece in "'\"":
            self._quote = piece
        elif piece in "([{":
            self._depth += 1
        elif piece in ")]}":
            self._depth -= 1
        return self._give_up() if not 0 <= self._depth <= MAX_DEPTH or (piece == "\\" and not self._quote) else []

    def _end_argument(self, is_last: bool) -> list[Part]:
        text, self._piece = "".join(self._piece), []
        written = self._written or ArgumentsWriter()
        pieces = []
        if text.strip():
            try:
                name, value = LiteralReader(text).argument()
                pieces.append(written.key(name) + value)
            except NotALiteral:
                return self._give_up()
        elif not is_last:
            return self._give_up()
        start: list[Part] = [] if self._written is not None else [CallStart(self._name)]
        self.begun, self._written, self._held = True, written, []
        if is_last:
            pieces.append(written.end())
            self._written, self._state = None, "next"
        return [*start, CallArguments("".join(pieces))]

    def _give_up(self) -> list[Part]:
        text, self._held, self._written, self._state = "".join(self._held), [], None, "text"
        return [Content(text)] if text else []


class Qwen3CoderParser(HermesParser):
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>` among other text.

    Values are texts; the tool's schema says which of them are numbers, booleans, lists or objects. Those are given when
    they are complete, texts as they are written. The marks may stand in the strings of lists and objects.
    """

    def __init__(self) -> None:
        super().__init__()
        self._types: dict[str, dict[str, Any]] = {}
        self._reads_strings = True

    def set_tools(self, tools: Tools) -> None:
        for tool in tools:
            function = tool["function"]
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            self._types[function["name"]] = properties if isinstance(properties, dict) else {}

    def new_reader(self) -> MarkedReader:
        return CoderReader(self.OPEN, self._types, self._reads_strings)

    def finish(self) -> list[Part]:
        """A string that never ended is none: what it seemed to hold is read again, marks as marks. That happens once,
        so that the time stays linear."""
        parts = self._take_held()
        if isinstance(self._reader, CoderReader) and self._reader.in_string:
            self._reads_strings = False
            parts += self.feed(self._reader.give_back())
        return parts + super().finish()


class CoderReader:
    """Between the outer marks. reads_strings: whether marks in strings of lists and objects are text."""

    FUNCTION, END_FUNCTION, PARAMETER, END_PARAMETER = "<function=", "</function>", "<parameter=", "</parameter>"

    def __init__(self, held: str, types: dict[str, dict[str, Any]], reads_strings: bool) -> None:
        self.begun = False
        self._held = [held]
        self._all_types = types
        self._types: dict[str, Any] = {}
        self._cutter = Cutter(self.FUNCTION, self.END_FUNCTION, self.PARAMETER, self.END_PARAMETER)
        self._state = "start"
        self._piece: list[str] = []
        self._key = ""
        self._is_first = True
        self._reads_strings = reads_strings
        self._scanner: JsonScanner | None = None
        self._written = ArgumentsWriter()

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        held = self._cutter.finish()
        parts = self._take(held) if held else []
        if not self.begun:
            return parts + self._give_up()
        return parts + self._end_function()

    @property
    def in_string(self) -> bool:
        return self._scanner is not None and self._scanner.in_string

    def give_back(self) -> str:
        """The value under way, as far as it came. From here on strings are not read."""
        text = "".join(self._piece) + self._cutter.finish()
        self._piece, self._scanner, self._reads_strings = [], None, False
        return text

    def _take(self, piece: str | Marker) -> list[Part]:
        text = piece.text if isinstance(piece, Marker) else piece
        is_mark = isinstance(piece, Marker) and not self._is_in_value(text)
        if self._state == "text":
            return [Content(text)]
        if not self.begun:
            self._held.append(text)
        if self._state == "start":
            if is_mark and text == self.FUNCTION:
                self._state = "function"
                return []
            return self._give_up() if is_mark or text.strip() else []
        if is_mark:
            return self._take_mark(text)
        if self._state in ("function", "key"):
            return self._take_name(text)
        return self._take_value(text) if self._state == "value" else []

    def _is_in_value(self, mark: str) -> bool:
        """No function begins in a value, and in a string of a list or an object all marks are text."""
        return self._state == "value" and (mark == self.FUNCTION or self.in_string)

    def _take_mark(self, mark: str) -> list[Part]:
        if self._state == "function":
            return self._give_up()
        parts = self._end_value()
        if mark == self.PARAMETER and self._state != "end":
            self._state = "key"
        elif mark == self.END_FUNCTION:
            parts += self._end_function()
        return parts

    def _take_name(self, text: str) -> list[Part]:
        name, mark, rest = text.partition(">")
        self._piece.append(name)
        if not mark:
            return []
        name, self._piece = "".join(self._piece), []
        if self._state == "function":
            self.begun, self._state, self._held = True, "between", []
            self._types = self._all_types.get(name, {})
            return [CallStart(name)]
        self._key, self._state, self._is_first = name, "value", True
        key = self._written.key(name)
        opened = key + '"' if self._is_text else key
        self._scanner = None if self._is_text or not self._reads_strings else JsonScanner()
        return [CallArguments(opened), *self._take_value(rest)]

    @property
    def _is_text(self) -> bool:
        """Whether the value is a text, by the schema, and given as it comes."""
        return is_text(self._types.get(self._key))

    def _take_value(self, text: str) -> list[Part]:
        """The first line break, and the last, are not of the value."""
        if text and self._is_first:
            text, self._is_first = text.removeprefix("\n"), False
        if not self._is_text:
            self._piece.append(text)
            if self._scanner is not None:
                self._scanner.feed(text)
            return []
        text = "".join(self._piece) + text
        kept = text.removesuffix("\n")
        self._piece = [text[len(kept) :]]
        return [CallArguments(json.dumps(kept, ensure_ascii=False)[1:-1])] if kept else []

    def _end_value(self) -> list[Part]:
        if self._state != "value":
            self._piece = []
            return []
        text, self._piece, self._state = "".join(self._piece).removesuffix("\n"), [], "between"
        self._scanner = None
        return [CallArguments('"' if self._is_text else _typed(text))]

    def _end_function(self) -> list[Part]:
        if self._state == "end":
            return []
        parts = self._end_value()
        self._state = "end"
        return [*parts, CallArguments(self._written.end())]

    def _give_up(self) -> list[Part]:
        text, self._held, self._state = "".join(self._held), [], "text"
        return [Content(text)] if text else []


def is_text(schema: Any) -> bool:
    """Whether a value of that schema is written as it is: all are, unless their types are told and a string is none."""
    if not isinstance(schema, dict):
        return True
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return not isinstance(alternatives, list) or any(map(is_text, alternatives))
    kind = schema.get("type")
    return not isinstance(kind, str) or kind == "string"


def _typed(text: str) -> str:
    """What a text stands for, as JSON: that if it is JSON, else a literal of Python's, else the text itself."""
    if (value := whole_value(text)) is not None:
        return value
    try:
        return LiteralReader(text).value()
    except NotALiteral:
        return json.dumps(text, ensure_ascii=False)


class NamedCallParser:
    """The output is the arguments of one function, by its schema."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Part]:
        """An output that was cut off while it still reasoned has no call."""
        if not text:
            return []
        start: list[Part] = [] if self._begun else [CallStart(self._name)]
        self._begun = True
        return [*start, CallArguments(text)]

    def finish(self) -> list[Part]:
        return []


class RequiredCallsParser(CallsReader):
    """The output is `[{"name": ..., "parameters": {...}}, ...]`, by a schema."""

    def __init__(self) -> None:
        super().__init__(("parameters",), listed=True)
