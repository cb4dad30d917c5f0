"""Further forms of tool calls: Python-like lists of calls, XML-like calls, and JSON that was asked for by a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.chat_output.parsers.base import CallArguments, CallStart, Content, Cutter, Marker, Part
from vllm.entrypoints.chat_output.parsers.calls import CallsReader
from vllm.entrypoints.chat_output.parsers.json_text import JsonScanner
from vllm.entrypoints.chat_output.parsers.literals import MAX_DEPTH, LiteralReader, NotALiteral
from vllm.entrypoints.chat_output.parsers.tools import CallsParser, Reader
from vllm.entrypoints.chat_output.parsers.value_types import (
    BEGINNING_LEN,
    TEXT,
    SchemaTypes,
    Types,
    as_value,
    may_become_value,
)

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


class PythonicParser(CallsParser):
    """`[f(a=1, b="x"), g()]`: keyword arguments of literals. Each is given when it is complete."""

    openings = "["
    END = ""

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        return PythonicReader(mark, self.END, self.tool_names)


class Llama4PythonicParser(PythonicParser):
    """The same, between `<|python_start|>` and `<|python_end|>` or not."""

    marks = ("<|python_start|>",)
    END = "<|python_end|>"


class PythonicReader:
    """Cuts the list into names and arguments; each argument is read by itself, once. What is no call stays text.

    mark: what the list stands behind, or "". end: what may follow it. tool_names: None where they are not known.
    """

    _RUN = re.compile(r"""[^'"\\()\[\]{},]+""")
    _NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*")

    def __init__(self, mark: str, end: str, tool_names: frozenset[str] | None) -> None:
        self.begun = False
        self.ended = False
        self._end = end
        self._tool_names = tool_names
        self._is_sure = bool(mark)
        self._held = [mark]
        self._state = "start"
        self._piece: list[str] = []
        self._name = ""
        self._written: ArgumentsWriter | None = None
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def holds(self, mark: str) -> bool:
        return bool(self._quote)

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        parts: list[Part] = []
        while position < len(text) and not self.ended:
            run = self._RUN.match(text, position)
            piece = run[0] if run else text[position]
            position += len(piece)
            self._held.append(piece)
            parts += self._take(piece)
        return parts, position

    def finish(self, is_cut: bool) -> list[Part]:
        """A call that is broken off has been given as far as it came; one that is cut off before is dropped."""
        held, self._held = "".join(self._held), []
        if self._written is not None or (is_cut and self._is_call_cut_off()):
            return []
        is_end = self._state == "end" and held.strip() in ("", self._end)
        is_separator = self.begun and not held.strip(", \n\t\r")
        return [] if is_end or is_separator or not held else [Content(held)]

    def _is_call_cut_off(self) -> bool:
        if self._state == "argument" and (self._tool_names is None or self._name in self._tool_names):
            return True
        return self._state in ("start", "name", "argument") and (self._is_sure or self.begun)

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
        text, self._held, self._written, self.ended = "".join(self._held), [], None, True
        return [Content(text)] if text else []


class Qwen3CoderParser(CallsParser):
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`, also without the outer marks.

    Values are texts; the tool's schema says which of them are numbers, booleans, lists or objects. Those are given when
    they are complete, texts as they are written. The marks may stand in the strings of lists and objects. Without the
    outer marks, a function must be one of the tools.
    """

    OPEN, CLOSE, FUNCTION, END_FUNCTION = "<tool_call>", "</tool_call>", "<function=", "</function>"
    marks = (OPEN, FUNCTION)
    close = CLOSE
    inner_marks = (END_FUNCTION,)

    def __init__(self) -> None:
        super().__init__()
        self._schemas: dict[str, ObjectSchema] = {}
        self._reads_strings = True

    def set_tools(self, tools: Tools) -> None:
        super().set_tools(tools)
        for tool in tools:
            function = tool["function"]
            self._schemas[function["name"]] = ObjectSchema(function.get("parameters"))

    def new_reader(self, mark: str, among_text: bool) -> Reader:
        return CoderReader(mark, self._schemas, self._reads_strings)

    def finish(self) -> list[Part]:
        """A string that never ended is none: what it seemed to hold is read again, marks as marks. That happens once,
        so that the time stays linear."""
        parts = self._take_held()
        if isinstance(self._reader, CoderReader) and self._reader.in_string:
            self._reads_strings = False
            parts += self.feed(self._reader.give_back())
        return parts + super().finish()


class ObjectSchema:
    """The properties of a tool's parameters, and what types they have."""

    def __init__(self, parameters: Any) -> None:
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        self._properties = properties if isinstance(properties, dict) else {}
        self._types = SchemaTypes(parameters)

    def types_of(self, name: str) -> Types:
        """Of a property that does not say, texts."""
        return self._types.of(self._properties.get(name)) or TEXT


class CoderReader:
    """From an opening mark on. mark: that of the calls, or of a function without them. reads_strings: whether marks in
    strings of lists and objects are text."""

    PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
    OPEN, FUNCTION, END_FUNCTION = Qwen3CoderParser.OPEN, Qwen3CoderParser.FUNCTION, Qwen3CoderParser.END_FUNCTION

    def __init__(self, mark: str, schemas: dict[str, ObjectSchema], reads_strings: bool) -> None:
        self.begun = False
        self.ended = False
        self._is_bare = mark == self.FUNCTION
        self._held = [mark]
        self._schemas = schemas
        self._schema = ObjectSchema(None)
        self._cutter = Cutter(self.FUNCTION, self.END_FUNCTION, self.PARAMETER, self.END_PARAMETER)
        self._state = "function" if self._is_bare else "start"
        self._piece: list[str] = []
        self._types = TEXT
        self._value_is_text = True
        self._is_first = True
        self._beginning = ""
        self._reads_strings = reads_strings
        self._scanner: JsonScanner | None = None
        self._written = ArgumentsWriter()

    @property
    def in_string(self) -> bool:
        return self._scanner is not None and self._scanner.in_string

    def holds(self, mark: str) -> bool:
        """No call and no function begins in a value."""
        if mark == self.OPEN:
            return self._state == "value"
        return mark in (self.FUNCTION, self.END_FUNCTION) or self.in_string

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        parts: list[Part] = []
        for piece in self._cutter.feed(text[position:]):
            parts += self._take(piece)
        if self.ended:
            parts += self._as_content(self._cutter.finish())
        return parts, len(text)

    def finish(self, is_cut: bool) -> list[Part]:
        held = self._cutter.finish()
        parts = self._take(held) if held else []
        if self.begun:
            return parts + self._end_function()
        name = "".join(self._piece)
        is_call = not self._is_bare or any(known.startswith(name) for known in self._schemas)
        return parts if is_cut and is_call else parts + self._give_up()

    def give_back(self) -> str:
        """The value under way, as far as it came. From here on strings are not read."""
        text = "".join(self._piece) + self._cutter.finish()
        self._piece, self._beginning, self._scanner, self._reads_strings = [], "", None, False
        return text

    def _take(self, piece: str | Marker) -> list[Part]:
        text = piece.text if isinstance(piece, Marker) else piece
        if self.ended:
            return self._as_content(text)
        if not self.begun:
            self._held.append(text)
        if isinstance(piece, Marker) and not self._is_in_value(text):
            return self._take_mark(text)
        if self._state == "start":
            return self._give_up() if text.strip() else []
        if self._state in ("function", "key"):
            return self._take_name(text)
        return self._take_value(text) if self._state == "value" else []

    def _is_in_value(self, mark: str) -> bool:
        """In a string of a list or an object all marks are text."""
        return self._state == "value" and (mark == self.FUNCTION or self.in_string)

    def _take_mark(self, mark: str) -> list[Part]:
        if self._state == "function" or (self._state == "start" and mark != self.FUNCTION):
            return self._give_up()
        if mark == self.FUNCTION:
            parts = self._end_function() if self.begun else []
            self._state = "function"
            return parts
        parts = self._end_value()
        if mark == self.PARAMETER and self._state != "end":
            self._state = "key"
        elif mark == self.END_FUNCTION:
            parts += self._end_function()
            self.ended = self._is_bare
        return parts

    def _take_name(self, text: str) -> list[Part]:
        name, mark, rest = text.partition(">")
        self._piece.append(name)
        if not mark:
            return []
        name, self._piece = "".join(self._piece), []
        return self._begin_function(name) if self._state == "function" else self._begin_value(name, rest)

    def _begin_function(self, name: str) -> list[Part]:
        if self._is_bare and name not in self._schemas:
            return self._give_up()
        self.begun, self._state, self._held = True, "between", []
        self._schema, self._written = self._schemas.get(name, ObjectSchema(None)), ArgumentsWriter()
        return [CallStart(name)]

    def _begin_value(self, name: str, rest: str) -> list[Part]:
        self._state, self._is_first, self._beginning = "value", True, ""
        self._types = self._schema.types_of(name)
        self._value_is_text = self._types == TEXT
        self._scanner = None if self._value_is_text or not self._reads_strings else JsonScanner()
        opened = self._written.key(name) + ('"' if self._value_is_text else "")
        return [CallArguments(opened), *self._take_value(rest)]

    def _take_value(self, text: str) -> list[Part]:
        """The first line break, and the last, are not of the value."""
        if text and self._is_first:
            text, self._is_first = text.removeprefix("\n"), False
        self._piece.append(text)
        if not self._value_is_text:
            return self._hold_value(text)
        text = "".join(self._piece)
        kept = text.removesuffix("\n")
        self._piece = [text[len(kept) :]]
        return [CallArguments(json.dumps(kept, ensure_ascii=False)[1:-1])] if kept else []

    def _hold_value(self, text: str) -> list[Part]:
        """Of a value that is given when it is complete, unless it can only be a text."""
        if self._scanner is not None:
            self._scanner.feed(text)
        self._beginning = (self._beginning + text)[:BEGINNING_LEN]
        if "string" not in self._types or self._may_become_value():
            return []
        text, self._piece = "".join(self._piece), []
        self._value_is_text, self._scanner = True, None
        return [CallArguments('"'), *self._take_value(text)]

    def _may_become_value(self) -> bool:
        is_broken = self._scanner is not None and self._scanner.broken and self._beginning.lstrip()[:1] in ("[", "{")
        return not is_broken and may_become_value(self._beginning, self._types)

    def _end_value(self) -> list[Part]:
        if self._state != "value":
            self._piece = []
            return []
        text, self._piece, self._state = "".join(self._piece).removesuffix("\n"), [], "between"
        self._scanner = None
        return [CallArguments('"' if self._value_is_text else as_value(text, self._types))]

    def _end_function(self) -> list[Part]:
        if self._state in ("end", "function"):
            return []
        parts = self._end_value()
        self._state = "end"
        return [*parts, CallArguments(self._written.end())]

    def _give_up(self) -> list[Part]:
        text, self._held, self.ended = "".join(self._held), [], True
        return self._as_content(text)

    def _as_content(self, text: str) -> list[Part]:
        return [Content(text)] if text else []


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


class RequiredCallsParser:
    """The output is `[{"name": ..., "parameters": {...}}, ...]`, by a schema.

    A call that is cut off before its arguments is not shown.
    """

    def __init__(self) -> None:
        self._reader = CallsReader(("parameters",), listed=True)

    def feed(self, text: str) -> list[Part]:
        parts, _ = self._reader.feed(text, 0)
        return [part for part in parts if not isinstance(part, Content)]

    def finish(self) -> list[Part]:
        return []
