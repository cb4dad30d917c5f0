"""Further forms of tool calls: Python-like lists of calls, XML-like calls, and JSON that was asked for by a schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.openai.parsers.base import Content, Part, ToolCall
from vllm.entrypoints.openai.parsers.literals import LiteralReader, NotALiteral
from vllm.entrypoints.openai.parsers.tools import HermesParser, WholeParser, read_call_list

Tools = Sequence[dict[str, Any]]


class PythonicParser(WholeParser):
    """`[f(a=1, b="x"), g()]`: keyword arguments of literals."""

    START, END = "", ""
    openings: tuple[str, ...] = ("[",)

    def read(self, text: str) -> list[ToolCall] | None:
        text = text.removeprefix(self.START).removesuffix(self.END)
        try:
            calls = LiteralReader(text).calls()
            return [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls] or None
        except NotALiteral:
            return None


class Llama4PythonicParser(PythonicParser):
    """The same, between `<|python_start|>` and `<|python_end|>` or not."""

    START, END = "<|python_start|>", "<|python_end|>"
    openings = (START, "[")


class GraniteParser(WholeParser):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`; `<tool_call>` or nothing may stand before the list."""

    TAGS = ("<|tool_call|>", "<tool_call>")
    openings = (*TAGS, "[")

    def read(self, text: str) -> list[ToolCall] | None:
        for tag in self.TAGS:
            text = text.removeprefix(tag)
        return read_call_list(text)


class Qwen3CoderParser(HermesParser):
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>` among other text.

    Values are texts; the tool's schema says which of them are numbers, booleans, lists or objects.
    """

    FUNCTION, PARAMETER = "<function=", "<parameter="

    def __init__(self) -> None:
        super().__init__()
        self._types: dict[str, dict[str, Any]] = {}

    def set_tools(self, tools: Tools) -> None:
        for tool in tools:
            function = tool["function"]
            properties = (function.get("parameters") or {}).get("properties")
            self._types[function["name"]] = properties if isinstance(properties, dict) else {}

    def read(self, text: str) -> ToolCall | None:
        text = text.strip()
        end = text.find(">")
        if not text.startswith(self.FUNCTION) or end < 0:
            return None
        name = text[len(self.FUNCTION) : end]
        body = text[end + 1 :].removesuffix("</function>")
        types = self._types.get(name, {})
        arguments: dict[str, Any] = {}
        for piece in body.split(self.PARAMETER)[1:]:
            key, separator, value = piece.partition(">")
            if not separator:
                return None
            value = value.partition("</parameter>")[0]
            arguments[key] = _typed(value.removeprefix("\n").removesuffix("\n"), types.get(key))
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _typed(text: str, schema: Any) -> Any:
    """The value of the schema's type that a text stands for; the text itself if there is none."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(kind, str) or kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return LiteralReader(text).value()
    except NotALiteral:
        return text


class NamedCallParser:
    """The output is the arguments of one function, by its schema."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pieces: list[str] = []

    def feed(self, text: str) -> list[Part]:
        self._pieces.append(text)
        return []

    def finish(self) -> list[Part]:
        """An output that was cut off while it still reasoned has no call."""
        return [ToolCall(self._name, "".join(self._pieces))] if any(self._pieces) else []


class RequiredCallsParser:
    """The output is `[{"name": ..., "parameters": {...}}, ...]`, by a schema. A closed object is given as a call."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self._object: list[str] = []

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        start = 0
        for i, character in enumerate(text):
            if self._in_text:
                self._end_text(character)
            elif character == '"':
                self._in_text = True
            elif character in "[{":
                self._depth += 1
                if self._depth == 2:
                    start, self._object = i, []
            elif character in "]}":
                self._depth -= 1
                if self._depth == 1:
                    parts.append(self._close(text[start : i + 1]))
        if self._depth >= 2:
            self._object.append(text[start:])
        return parts

    def finish(self) -> list[Part]:
        """A call that was cut off is shown as it is."""
        return [Content("".join(self._object))] if self._depth >= 2 else []

    def _end_text(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_text = False

    def _close(self, rest: str) -> Part:
        text, self._object = "".join([*self._object, rest]), []
        try:
            value = json.loads(text)
            return ToolCall(value["name"], json.dumps(value["parameters"], ensure_ascii=False))
        except (ValueError, KeyError, TypeError, RecursionError):
            return Content(text)
