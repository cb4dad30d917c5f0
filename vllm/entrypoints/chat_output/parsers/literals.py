"""Python literals, and keyword arguments of them, as JSON: read and never run.

One pass, a token at a time, each character read once; nesting is bounded. What is no literal (a name, an operator, an
f-string) is a `NotALiteral`. Numbers keep their digits, however many: neither Python's range nor its limit of digits is
JSON's.
"""

from __future__ import annotations

import json
import re

MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"""
    r"""|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_][\w.-]*)|(?P<mark>[][(){},:=]))""",
    re.DOTALL,
)
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"([-+]?)0*([0-9]*)(?:(\.)([0-9]*))?(.*)")
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))",
    re.DOTALL,
)
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

    def value(self) -> str:
        """The one literal that the text is, as JSON."""
        value = self._value(0)
        self._expect_end()
        return value

    def argument(self) -> tuple[str, str]:
        """The one keyword argument that the text is, `a=1`: its name, and its value as JSON."""
        name, value = self._argument()
        self._expect_end()
        return name, value

    def _argument(self) -> tuple[str, str]:
        name = self._name()
        self._take("=")
        return name, self._value(1)

    def _value(self, depth: int) -> str:
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
            return _quoted(_ESCAPE.sub(_unescaped, token[1:-1]))
        if kind == "name" and token in _CONSTANTS:
            return _CONSTANTS[token]
        raise NotALiteral(f"{token[:32]!r} is no literal")

    def _list(self, closing: str, depth: int) -> str:
        self._advance()
        values = []
        while not self._at(closing):
            values.append(self._value(depth + 1))
            if not self._comma(closing):
                break
        self._take(closing)
        return f"[{', '.join(values)}]"

    def _dict(self, depth: int) -> str:
        self._advance()
        values = {}
        while not self._at("}"):
            if self._kind != "text":
                raise NotALiteral("keys are texts")
            key = self._value(depth + 1)
            self._take(":")
            values[key] = self._value(depth + 1)
            if not self._comma("}"):
                break
        self._take("}")
        return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"

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


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(token: str) -> str:
    """JSON has no sign +, no zeros before a number, and digits on both sides of the point."""
    sign, whole, point, fraction, exponent = _NUMBER.fullmatch(token).groups("")  # type: ignore[union-attr]
    return f"{sign.strip('+')}{whole or '0'}{point}{fraction or '0' if point else ''}{exponent}"


def _unescaped(match: re.Match[str]) -> str:
    if match[1] is not None:
        return str(json.loads(f'"{match[0]}"'))
    code = match[2] or match[3] or match[4]
    if code is None:
        return _ESCAPES.get(match[5], match[5] if match[5] in "\\'\"" else match[0])
    number = int(code, 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\N{REPLACEMENT CHARACTER}"
