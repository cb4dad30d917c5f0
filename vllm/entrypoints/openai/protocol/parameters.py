"""Sampling parameters as fields of requests, made from the rows of `vllm.sample.table`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from vllm.entrypoints.openai.protocol.base import INT64_MAX, INT64_MIN, Strings, TokenIds
from vllm.sample.table import ROWS, Kind, Row

FIELDS = tuple(name for name, row in ROWS.items() if row.is_field)
"""Parameters that every request for text has a field for."""

_TYPES: dict[Kind, Any] = {
    "integer": int,
    "number": float,
    "switch": bool,
    "text list": Strings,
    "token ids": TokenIds,
    "bias": dict[str, float],
}


def parameter_fields(names: Iterable[str]) -> dict[str, Any]:
    """By name, the (type, pydantic field) that `pydantic.create_model` takes."""
    return {name: _field(ROWS[name]) for name in names}


def _field(row: Row) -> tuple[Any, Any]:
    """The field can be null where None is a value of the parameter, or a default of the server's can stand in."""
    kind = str | Strings if row.takes_one_text else _TYPES[row.kind]
    bounds: dict[str, Any] = {"ge": INT64_MIN, "le": INT64_MAX} if row.column == "uint64" else {}
    if row.is_optional or row.from_checkpoint or row.kind == "number":
        return kind | None, Field(None, description=row.help, **bounds)
    return kind, Field(row.default, description=row.help, **bounds)
