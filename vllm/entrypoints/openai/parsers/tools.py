"""Tool calls in the forms that models were taught to write them.

A call is given when it is complete: name and arguments in one part. What looks like a call and is none stays content.
"""

from __future__ import annotations

import json
from typing import Any

from vllm.entrypoints.openai.parsers.base import Content, Cutter, Marker, Part, ToolCall

_decoder = json.JSONDecoder()


class HermesParser:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` among other text. White space before it is dropped."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._cutter = Cutter(self.OPEN, self.CLOSE)
        self._call: list[str] | None = None
        self._space: list[str] = []

    def feed(self, text: str) -> list[Part]:
        return [part for piece in self._cutter.feed(text) for part in self._take(piece)]

    def finish(self) -> list[Part]:
        held = self._cutter.finish()
        parts = self._take(held) if held else []
        if self._call is not None:
            return parts + self._end_call("")
        return parts + ([Content("".join(self._space))] if self._space else [])

    def _take(self, piece: str | Marker) -> list[Part]:
        text = piece if isinstance(piece, str) else piece.text
        if self._call is None:
            if isinstance(piece, Marker) and text == self.OPEN:
                self._call = []
                return []
            return self._content(text)
        if isinstance(piece, Marker) and text == self.CLOSE:
            return self._end_call(text)
        self._call.append(text)
        return []

    def _content(self, text: str) -> list[Part]:
        """The white space at the end waits: it is dropped if a call follows."""
        kept = text.rstrip()
        if not kept:
            self._space.append(text)
            return []
        before, self._space = "".join(self._space), [text[len(kept) :]]
        return [Content(before + kept)]

    def _end_call(self, close: str) -> list[Part]:
        text = "".join(self._call or [])
        self._call = None
        call = self.read(text)
        if call is None:
            return self._content(self.OPEN + text + close)
        self._space = []
        return [call]

    def read(self, text: str) -> ToolCall | None:
        """The call between the markers, or None if it is none."""
        return _call_of(_json(text), "arguments")


class WholeParser:
    """Forms in which the whole output is calls: known by how it begins, read when it has ended."""

    openings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._head = ""
        self._state = "undecided"

    def feed(self, text: str) -> list[Part]:
        if self._state == "text":
            return [Content(text)] if text else []
        self._pieces.append(text)
        if self._state == "undecided":
            self._head = (self._head + text).lstrip()[: max(map(len, self.openings))]
            self._state = self._decide()
        return self._release() if self._state == "text" else []

    def finish(self) -> list[Part]:
        if self._state == "text" or not any(self._pieces):
            return []
        calls = self.read("".join(self._pieces).strip())
        return list(calls) if calls else self._release()

    def _decide(self) -> str:
        if any(self._head.startswith(opening) for opening in self.openings):
            return "calls"
        return "undecided" if any(opening.startswith(self._head) for opening in self.openings) else "text"

    def _release(self) -> list[Part]:
        text, self._pieces = "".join(self._pieces), []
        return [Content(text)] if text else []

    def read(self, text: str) -> list[ToolCall] | None:
        """The calls, or None if the text is something else."""
        raise NotImplementedError


class Llama3JsonParser(WholeParser):
    """`{"name": ..., "parameters": {...}}`, several with `;` between them, `<|python_tag|>` before them or not."""

    TAG = "<|python_tag|>"
    openings = (TAG, "{")

    def read(self, text: str) -> list[ToolCall] | None:
        text = text.removeprefix(self.TAG).strip()
        calls: list[ToolCall] = []
        position = 0
        while position < len(text):
            value, position = _json_at(text, position)
            call = _call_of(value, "parameters") or _call_of(value, "arguments")
            if call is None:
                return None
            calls.append(call)
            while position < len(text) and text[position] in "; \n\t\r":
                position += 1
        return calls


class MistralParser(WholeParser):
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`."""

    TAG = "[TOOL_CALLS]"
    openings = (TAG,)

    def read(self, text: str) -> list[ToolCall] | None:
        return read_call_list(text.removeprefix(self.TAG))


def read_call_list(text: str) -> list[ToolCall] | None:
    """The calls of `[{"name": ..., "arguments": {...}}, ...]`, or None if the text is something else."""
    values = _json(text)
    if not isinstance(values, list) or not values:
        return None
    calls = [_call_of(value, "arguments") for value in values]
    return None if None in calls else [call for call in calls if call is not None]


def _json(text: str) -> Any:
    """The value, or None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_at(text: str, position: int) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, len(text)


def _call_of(value: Any, arguments: str) -> ToolCall | None:
    """The call that an object describes. Arguments that are a text are taken for their JSON."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or arguments not in value:
        return None
    given = value[arguments]
    if isinstance(given, str):
        given = _json(given)
    return ToolCall(value["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None
