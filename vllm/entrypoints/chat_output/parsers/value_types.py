"""The types that values may have by a JSON schema, and texts as values of these types.

Forms of calls whose values are plain texts need this: `5` is a number or a text, as the tool's schema says. All ways in
which a schema can say it are read: `type` (one or a list), `enum`, `const`, `anyOf`, `oneOf`, `allOf`, `$ref` and
OpenAPI's `nullable`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from vllm.entrypoints.chat_output.parsers.json_text import whole_value
from vllm.entrypoints.chat_output.parsers.literals import LiteralReader, NotALiteral

Types = frozenset[str]
"""Names of JSON's types. A schema that allows numbers allows integers."""

ANY: Types = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
TEXT: Types = frozenset({"string"})

_MAX_REFERENCES = 32
"""References that lead to one another."""
_MAX_SCALAR_LEN = 64
"""A longer text is no number and no constant, where texts are allowed. In characters."""
BEGINNING_LEN = _MAX_SCALAR_LEN + 1
"""As much of a text decides what it may become. In characters."""
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NUMBER_BEGINNING = re.compile(r"-?(0|[1-9][0-9]*)?((?<=[0-9])\.[0-9]*)?((?<=[0-9])[eE][-+]?[0-9]*)?")
_CONSTANTS = {"true": "boolean", "false": "boolean", "null": "null"}


class SchemaTypes:
    """The types of what the parts of a schema allow. root: the whole schema, which references look in."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._referred: dict[str, Types | None] = {}
        self._num_followed = 0

    def of(self, schema: Any) -> Types | None:
        """None for a schema that does not say, or that allows nothing. A type that JSON has not is any but a text."""
        return self._types(schema) or None

    def _types(self, schema: Any) -> Types | None:
        if not isinstance(schema, dict):
            return None
        allowed: Types | None = None
        for types in self._restrictions(schema):
            if types is not None:
                allowed = types if allowed is None else allowed & types
        return allowed | {"null"} if allowed is not None and schema.get("nullable") is True else allowed

    def _restrictions(self, schema: dict[str, Any]) -> Iterator[Types | None]:
        """What each keyword allows; None for one that does not say."""
        yield _named(schema.get("type"))
        if isinstance(values := schema.get("enum"), list) and values:
            yield frozenset(map(type_of, values))
        if "const" in schema:
            yield frozenset({type_of(schema["const"])})
        for keyword in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(keyword), list) and branches:
                found = [self._types(branch) for branch in branches]
                yield None if None in found else frozenset().union(*(types for types in found if types))
        if isinstance(parts := schema.get("allOf"), list):
            yield from map(self._types, parts)
        if isinstance(reference := schema.get("$ref"), str):
            yield self._types_referred_to(reference)

    def _types_referred_to(self, reference: str) -> Types | None:
        """Each reference is followed once; one that leads back to itself, or too far, does not say."""
        if reference not in self._referred and self._num_followed < _MAX_REFERENCES:
            self._referred[reference] = None
            self._num_followed += 1
            self._referred[reference] = self._types(referred(reference, self._root))
            self._num_followed -= 1
        return self._referred.get(reference)


def _named(names: Any) -> Types | None:
    listed = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    types: set[str] = set()
    for name in listed:
        types |= {"number", "integer"} if name == "number" else {name} if name in ANY else ANY - TEXT
    return frozenset(types) or None


def type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def referred(reference: Any, root: Any) -> Any:
    """What a reference within the schema points to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for step in reference[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def as_value(text: str, types: Types) -> str:
    """What a text stands for, as JSON.

    Where texts are allowed, that is the text itself, unless it is JSON of another type that is allowed. Where none are,
    it is JSON or a literal of Python's of whatever type, else the text itself.
    """
    if "string" in types:
        kind, value = _json(text)
        if kind in types or (kind == "integer" and "number" in types):
            return value
    elif (literal := _literal(text)) is not None:
        return literal
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str | None:
    if (value := whole_value(text)) is not None:
        return value
    try:
        return LiteralReader(text).value()
    except NotALiteral:
        return None


def _json(text: str) -> tuple[str | None, str]:
    """The type of the JSON that a text is, and that JSON; None if it is none."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{"):
        value = whole_value(stripped)
        return (None, "") if value is None else ("array" if value[0] == "[" else "object", value)
    if len(text) > _MAX_SCALAR_LEN:
        return None, ""
    if number := _NUMBER.fullmatch(stripped):
        return "number" if number[2] or number[3] else "integer", stripped
    return _CONSTANTS.get(stripped), stripped


def may_become_value(text: str, types: Types) -> bool:
    """Whether a text that goes on may be something else than a text in the end, by `as_value`. Of a text that begins as
    an array or an object, how it goes on is not looked at."""
    beginning = text.lstrip()
    if not beginning:
        return True
    if beginning[0] in "[{":
        return ("array" if beginning[0] == "[" else "object") in types
    if len(text) > _MAX_SCALAR_LEN:
        return False
    beginning = beginning.rstrip()
    if any(constant.startswith(beginning) and kind in types for constant, kind in _CONSTANTS.items()):
        return True
    return bool(types & {"number", "integer"}) and _NUMBER_BEGINNING.fullmatch(beginning) is not None
