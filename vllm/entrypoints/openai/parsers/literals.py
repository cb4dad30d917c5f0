"""Python literals, and keyword arguments of them, read and never run.

One pass, a token at a time, each character read once; nesting is bounded. What is no literal (a name, an operator, an
f-string) is a `NotALiteral`.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_][\w.-]*)|(?P<mark>[][(){},:=]))""",
    re.DOTALL,
)
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_CLOSING = {"[": "]", "(": ")"}


class NotALiteral(ValueError):
    """The text is no literal, no argument, or nested too deeply."""


class LiteralReader:
    """num_tokens: how many tokens were read so far."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._kind: str | None = None
        self._token = ""
        self.num_tokens = 0
        self._advance()

    def value(self) -> Any:
        """The one literal that the text is."""
        value = self._value(0)
        self._expect_end()
        return value

    def argument(self) -> tuple[str, Any]:
        """The one keyword argument that the text is: `a=1`."""
        name, value = self._argument()
        self._expect_end()
        return name, value

    def _argument(self) -> tuple[str, Any]:
        name = self._name()
        self._take("=")
        return name, self._value(1)

    def _value(self, depth: int) -> Any:
        kind, token = self._kind, self._token
        if depth > MAX_DEPTH:
            raise NotALiteral("nested too deeply")
        if kind == "mark" and token in _CLOSING:
            return self._list(_CLOSING[token], depth)
        if kind == "mark" and token == "{":
            return self._dict(depth)
        self._advance()
        if kind == "number":
            return _number(token)
        if kind == "text":
            return _ESCAPE.sub(_unescaped, token[1:-1])
        if kind == "name" and token in _CONSTANTS:
            return _CONSTANTS[token]
        raise NotALiteral(f"{token[:32]!r} is no literal")

    def _list(self, closing: str, depth: int) -> list[Any]:
        self._advance()
        values = []
        while not self._at(closing):
            values.append(self._value(depth + 1))
            if not self._comma(closing):
                break
        self._take(closing)
        return values

    def _dict(self, depth: int) -> dict[str, Any]:
        self._advance()
        values = {}
        while not self._at("}"):
            key = self._value(depth + 1)
            if not isinstance(key, str):
                raise NotALiteral("keys are texts")
            self._take(":")
            values[key] = self._value(depth + 1)
            if not self._comma("}"):
                break
        self._take("}")
        return values

    def _comma(self, closing: str) -> bool:
        """Whether another entry may follow."""
        if self._at(closing):
            return False
        self._take(",")
        return True

    def _name(self) -> str:
        if self._kind != "name":
            raise NotALiteral(f"expected a name, not {self._token[:32]!r}")
        name = self._token
        self._advance()
        return name

    def _at(self, mark: str) -> bool:
        return self._kind == "mark" and self._token == mark

    def _take(self, mark: str) -> None:
        if not self._at(mark):
            raise NotALiteral(f"expected {mark!r}, not {self._token[:32]!r}")
        self._advance()

    def _expect_end(self) -> None:
        if self._kind is not None or self._text[self._position :].strip():
            raise NotALiteral("something follows")

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        self._kind, self._token = None, ""
        if match is not None:
            self._position = match.end()
            self._kind = match.lastgroup
            self._token = match[self._kind or 0]
            self.num_tokens += 1


def _number(token: str) -> int | float:
    try:
        return int(token)
    except ValueError:
        pass
    number = float(token)
    if not math.isfinite(number):
        raise NotALiteral("the number is too large")
    return number


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is None:
        return _ESCAPES.get(match[4], match[4] if match[4] in "\\'\"" else match[0])
    number = int(code, 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\N{REPLACEMENT CHARACTER}"
