"""Parts of a request's parameters that have a form of their own: constraints of the output's form, output kinds."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from vllm.exceptions import VLLMValidationError

MAX_SCHEMA_DEPTH = 64


class RequestOutputKind(Enum):
    """What each `RequestOutput` of a request holds: all so far, what is new, or everything once at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class StructuredOutputsParams(msgspec.Struct, omit_defaults=True):
    """The form an output must have; exactly one of the first six fields says which.

    json: a JSON schema, as an object or its text. regex: a regular expression for the whole output. choice: the output
    is one of these texts. grammar: GBNF/EBNF (`root ::= ...`) or Lark (`start: ...`). json_object: any JSON object.
    structural_tag: schemas for marked parts of the output, as JSON text.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        given = self.kinds
        if len(given) > 1:
            raise parameter_error(
                f"You can only use one kind of structured outputs constraint, but got {', '.join(given)}",
                "structured_outputs",
            )
        if not given:
            raise parameter_error(
                f"You must use one kind of structured outputs constraint: {', '.join(_KINDS)}", "structured_outputs"
            )
        _check_constraint(given[0], getattr(self, given[0]))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in _KINDS if getattr(self, kind) is not None]


_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_CONSTRAINT_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "json": ((str, dict), "a JSON schema as an object or a text"),
    "regex": ((str,), "a text"),
    "choice": ((list, tuple), "a list of texts"),
    "grammar": ((str,), "a text"),
    "json_object": ((bool,), "true"),
    "structural_tag": ((str,), "a text"),
}


def _check_constraint(kind: str, value: Any) -> None:
    types, expected = _CONSTRAINT_TYPES[kind]
    name = f"structured_outputs.{kind}"
    if not any(isinstance(value, cls) for cls in types):
        raise parameter_error(f"{name} must be {expected}, got {type(value).__name__}.", name, value)
    if isinstance(value, str) and not value.strip():
        raise parameter_error(f"{name} cannot be an empty string.", name, value)
    if kind == "choice" and (not value or not all(isinstance(choice, str) and choice for choice in value)):
        raise parameter_error(f"{name} must be a non-empty list of non-empty texts.", name, value)
    if kind == "json_object" and value is False:
        raise parameter_error(f"{name} can only be true; leave it out to allow any text.", name, value)
    if kind == "regex" and "\0" in value:
        raise parameter_error(f"{name} must not contain NUL characters.", name)
    if kind == "json" and isinstance(value, dict) and is_deeper(value, MAX_SCHEMA_DEPTH):
        raise parameter_error(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep.", name)


def is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and dicts are nested in more than `limit` levels."""
    level = _containers([value])
    for _ in range(limit):
        if not level:
            return False
        level = [child for node in level for child in _containers(node)]
    return bool(level)


def _containers(node: dict[Any, Any] | list[Any]) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node
    return [child for child in children if isinstance(child, (dict, list))]


class RepetitionDetectionParams(msgspec.Struct, omit_defaults=True):
    """When an output that repeats itself is ended."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0


class ReasoningGate(msgspec.Struct, omit_defaults=True):
    """Where a structured output begins in an output that may think first: behind `close`.

    open_id: the token that opens the reasoning, where the output may begin with it. begun: the prompt opened it.
    """

    close: str
    open_id: int | None = None
    begun: bool = False


def parameter_error(message: str, parameter: str, value: Any = None) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=parameter, value=value)
