"""JSON read as it comes: a pushdown automaton over characters, which knows at each moment whether it still is JSON.

One pass; nesting is bounded. Control characters inside of strings, which models write and JSON forbids, are escaped.
Numbers stay as they are written: JSON bounds neither their size nor their digits, Python does.
"""

from __future__ import annotations

import json
import re

from vllm.entrypoints.model_json import MAX_DEPTH, decoded

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACE = " \t\n\r"
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_DIGITS = "0123456789"
_NUMBER = {
    "-": {"0": "0", **dict.fromkeys("123456789", "int")},
    "0": {".": ".", "e": "e", "E": "e"},
    "int": {**dict.fromkeys(_DIGITS, "int"), ".": ".", "e": "e", "E": "e"},
    ".": dict.fromkeys(_DIGITS, "frac"),
    "frac": {**dict.fromkeys(_DIGITS, "frac"), "e": "e", "E": "e"},
    "e": {"+": "e+", "-": "e+", **dict.fromkeys(_DIGITS, "exp")},
    "e+": dict.fromkeys(_DIGITS, "exp"),
    "exp": dict.fromkeys(_DIGITS, "exp"),
}
_NUMBER_MAY_END = ("0", "int", "frac", "exp")


class JsonScanner:
    """Reads one object or array.

    depth: how many are open. done: it has closed. broken: what came last cannot go on with it. key: of the outermost
    object, the key whose value comes or came last. text: of that value, where it is a string and has closed.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.done = self.broken = False
        self.key: str | None = None
        self.text: str | None = None
        self._open: list[str] = []
        self._expects = "value"
        self._string: list[str] = []
        self._hex_left = 0
        self._rest_of_literal = ""
        self._number = ""

    @property
    def in_string(self) -> bool:
        """Whether a mark that comes now, which begins with none of JSON's own characters, is part of a string."""
        return self._expects == "string"

    def feed(self, text: str, position: int = 0) -> tuple[str, int]:
        """All of `text` that belongs to the value, as it is to be written, and where it ends."""
        pieces = []
        while position < len(text) and not (self.done or self.broken):
            written, position = self.take(text, position)
            pieces.append(written)
        return "".join(pieces), position

    def take(self, text: str, position: int) -> tuple[str, int]:
        """The next of `text` as it is to be written, and where to go on: one character, or a run inside of a string."""
        if self._expects == "string" and (run := _PLAIN.match(text, position)):
            return self._in_string(run[0]), run.end()
        character = text[position]
        written = self._take(character)
        return ("", position) if self.broken else (written, position + 1)

    def _take(self, character: str) -> str:
        expects = self._expects
        if expects == "string":
            return self._special_in_string(character)
        if expects in ("escape", "hex"):
            return self._escaped(character)
        if expects == "literal":
            return self._literal(character)
        if expects == "number":
            state = _NUMBER[self._number].get(character)
            if state is not None:
                self._number = state
                return character
            if self._number not in _NUMBER_MAY_END:
                return self._break()
            self._end_value()
        return character if character in _SPACE else self._mark(character)

    def _mark(self, character: str) -> str:
        expects = self._expects
        if expects in ("value", "value or end") and character not in "]}":
            return self._begin_value(character)
        if character == '"' and expects in ("key", "key or end"):
            self._begin_string()
        elif character == ":" and expects == "colon":
            self._expects = "value"
        elif character == "," and expects == "comma or end":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif character in "]}" and expects in ("comma or end", "key or end", "value or end"):
            return self._close(character)
        else:
            return self._break()
        return character

    def _begin_value(self, character: str) -> str:
        if self.depth == 1:
            self.text = None
        if character in "{[" and self.depth < MAX_DEPTH:
            self._open.append(character)
            self.depth += 1
            self._expects = "key or end" if character == "{" else "value or end"
        elif not self.depth:
            return self._break()
        elif character == '"':
            self._begin_string()
        elif character in _LITERALS:
            self._expects, self._rest_of_literal = "literal", _LITERALS[character][1:]
        elif character in "-0123456789":
            self._expects, self._number = "number", character if character in "-0" else "int"
        else:
            return self._break()
        return character

    def _begin_string(self) -> None:
        self._is_key = self._expects != "value" and self._expects != "value or end"
        self._expects, self._string = "string", []

    def _close(self, character: str) -> str:
        if not self._open or self._open.pop() != {"]": "[", "}": "{"}[character]:
            return self._break()
        self.depth -= 1
        self.done = not self.depth
        self._end_value()
        return character

    def _end_value(self) -> None:
        self._expects = "comma or end" if self.depth else "nothing"

    def _in_string(self, text: str) -> str:
        if self.depth == 1:
            self._string.append(text)
        return text

    def _special_in_string(self, character: str) -> str:
        if character == "\\":
            self._expects = "escape"
            return self._in_string(character)
        if character != '"':
            return self._in_string(json.dumps(character)[1:-1])
        if self.depth == 1:
            value: str = decoded('"' + "".join(self._string) + '"')
            self.key, self.text = (value, None) if self._is_key else (self.key, value)
        self._expects = "colon" if self._is_key else "comma or end"
        return character

    def _escaped(self, character: str) -> str:
        if self._expects == "hex":
            if character not in "0123456789abcdefABCDEF":
                return self._break()
            self._hex_left -= 1
            self._expects = "hex" if self._hex_left else "string"
        elif character == "u":
            self._expects, self._hex_left = "hex", 4
        elif character in '"\\/bfnrt':
            self._expects = "string"
        else:
            return self._break()
        return self._in_string(character)

    def _literal(self, character: str) -> str:
        if character != self._rest_of_literal[0]:
            return self._break()
        self._rest_of_literal = self._rest_of_literal[1:]
        if not self._rest_of_literal:
            self._end_value()
        return character

    def _break(self) -> str:
        self.broken = True
        return ""


def whole_value(text: str) -> str | None:
    """The one array or object that `text` is, as it is to be written; None if it is none."""
    scanner = JsonScanner()
    written, end = scanner.feed(text)
    return written.strip() if scanner.done and not text[end:].strip() else None
