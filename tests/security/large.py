"""Bodies of the largest allowed size: every field of every route, filled with many values of each kind.

Routes, forms and fields are those of the server's own OpenAPI document, so a new one is tried without being named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

VALID: dict[str, Any] = {
    "prompt": "hello",
    "messages": [{"role": "user", "content": "hello"}],
    "input": "hello",
    "tokens": [5],
    "max_tokens": 1,
    "custom_id": "a",
}
"""A value for each field that some form of a body needs."""
UNKNOWN = "some_label"

FILLINGS: dict[str, tuple[bytes, bytes, bytes]] = {
    "numbers": (b"[", b"7", b"]"),
    "large numbers": (b"[", b"123456", b"]"),
    "fractions": (b"[", b"0.5", b"]"),
    "lists": (b"[", b"[]", b"]"),
    "lists of numbers": (b"[", b"[7]", b"]"),
    "objects": (b"[", b"{}", b"]"),
    "objects with a member": (b"[", b'{"a":1}', b"]"),
    "nulls": (b"[", b"null", b"]"),
    "strings": (b"[", b'"a"', b"]"),
    "members": (b"{", b'"%d":1', b"}"),
    "members with strings": (b"{", b'"k%d":"a"', b"}"),
    "messages": (b"[", b'{"role":"user","content":"a"}', b"]"),
    "parts": (b'[{"role":"user","content":[', b'{"type":"text","text":"a"}', b"]}]"),
    "calls": (
        b'[{"role":"assistant","tool_calls":[',
        b'{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}',
        b"]}]",
    ),
    "tools": (b"[", b'{"type":"function","name":"f","function":{"name":"f","parameters":{"type":"object"}}}', b"]"),
    "schema": (b'{"type":"json_schema","json_schema":{"name":"n","schema":{"enum":[', b'"e%d"', b"]}}}"),
    "constraint": (b'{"json":{"enum":[', b'"e%d"', b"]}}"),
    "choices": (b'{"choice":[', b'"e%d"', b"]}"),
    "format": (b'{"format":{"type":"json_schema","name":"n","schema":{"enum":[', b'"e%d"', b"]}}}"),
}
"""What stands before, at each place, and behind; %d is the number of the place."""


class LargeBody(NamedTuple):
    path: str
    field: str
    filling: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.path} {self.field}: {self.filling}"


class Form(NamedTuple):
    """One form of a route's body. fields: the names that it knows. base: the least that is valid."""

    path: str
    fields: list[str]
    base: dict[str, Any]


def forms_of(document: dict[str, Any]) -> Iterator[Form]:
    """Of every route that takes JSON, by its OpenAPI document."""
    for path, operations in document["paths"].items():
        if "requestBody" not in operations.get("post", {}):
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        for choice in schema.get("anyOf") or schema.get("oneOf") or [schema]:
            form = document["components"]["schemas"][choice["$ref"].rpartition("/")[2]]
            base = {name: VALID[name] for name in form.get("required", ())}
            yield Form(path, sorted(form["properties"]), base)


def filled(filling: str, num_bytes: int, most: int) -> bytes:
    """JSON of at most `num_bytes` and with at most `most` entries."""
    before, entry, behind = FILLINGS[filling]
    count = max(1, min(most, (num_bytes - len(before) - len(behind)) // (len(entry) + 1 + 4 * (b"%d" in entry))))
    entries = (entry % i for i in range(count)) if b"%d" in entry else [entry] * count
    return before + b",".join(entries) + behind


def large_bodies(form: Form, filling: str, num_bytes: int, most: int) -> Iterator[LargeBody]:
    """One for each field of the form, and for an unknown one."""
    for field in (*form.fields, UNKNOWN):
        base = {**form.base, "max_tokens": 1} if "max_tokens" in form.fields else form.base
        others = json.dumps({name: value for name, value in base.items() if name != field})[:-1].encode()
        content = b'%s%s"%s":%s}' % (others, b", " * (others != b"{"), field.encode(), filled(filling, num_bytes, most))
        yield LargeBody(form.path, field, filling, content)
