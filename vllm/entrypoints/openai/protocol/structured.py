"""The fields that ask for an output of a given form, and the one constraint they amount to.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` its older names. What other servers call them is
read as `structured_outputs`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from pydantic import Field

from vllm.entrypoints.fields import Alias, Fields, Names, check_fields, refusal, renamed
from vllm.entrypoints.openai.protocol.base import OpenAIBaseModel, Strings
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

_FIELDS = tuple(field.name for field in msgspec.structs.fields(StructuredOutputsParams))
_GUIDED = ("json", "regex", "choice", "grammar", "json_object")
_FORMAT = "response_format"


def _ollama_format(value: Any) -> Any:
    """Ollama's `format`: a schema, or "json" for any object."""
    if value == "json":
        return {"type": "object"}
    if value == "":
        return None
    if not isinstance(value, dict):
        raise ValueError('a JSON schema, or "json"')
    return value


FORM_ALIASES: dict[str, Alias] = {
    "ebnf": Alias("structured_outputs.grammar"),
    "format": Alias("structured_outputs.json", _ollama_format),
    "grammar": Alias("structured_outputs.grammar", lambda value: value or None),
    "json_schema": Alias("structured_outputs.json"),
    "regex": Alias("structured_outputs.regex"),
}


class Form(NamedTuple):
    """What is asked of an output's form.

    kind: the field of `StructuredOutputsParams` that says it. fields: all of them. place: of it in the request.
    """

    kind: str
    place: str
    fields: dict[str, Any]


class StructuredFields(OpenAIBaseModel):
    response_format: dict[str, Any] | None = Field(
        None, description="Form of the output: type text, json_object, json_schema or structural_tag."
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description="Form of the output: one of json, regex, choice, grammar, json_object, structural_tag."
    )
    guided_json: str | dict[str, Any] | None = Field(None, description="The older name of structured_outputs.json.")
    guided_regex: str | None = Field(None, description="The older name of structured_outputs.regex.")
    guided_choice: Strings | None = Field(None, description="The older name of structured_outputs.choice.")
    guided_grammar: str | None = Field(None, description="The older name of structured_outputs.grammar.")
    guided_json_object: bool | None = Field(None, description="The older name of structured_outputs.json_object.")
    guided_decoding_backend: str | None = Field(None, description="The older name of structured_outputs.backend.")
    guided_whitespace_pattern: str | None = Field(
        None, description="The older name of structured_outputs.whitespace_pattern."
    )

    @property
    def names(self) -> Names:
        """Also of `structured_outputs`, in whose terms constraints are checked."""
        try:
            form = self.asked_form()
        except VLLMValidationError:
            return self._names
        if form is None:
            return self._names
        place = renamed(form.place, self._names)
        checked = f"structured_outputs.{form.kind}"
        return self._names if place == checked else {**self._names, checked: place, "structured_outputs": place}

    def constraint(self) -> StructuredOutputsParams | None:
        """What the output must be like, if anything. Raises VLLMValidationError for several forms, or a wrong one."""
        form = self.asked_form()
        return None if form is None else StructuredOutputsParams(**form.fields)

    def asked_form(self) -> Form | None:
        forms = (self._structured(), self._guided(), _of_response_format(self.response_format, self.sent_to))
        wanted = [form for form in forms if form is not None]
        if len(wanted) > 1:
            names = " and ".join(f"`{form.place}`" for form in wanted)
            raise VLLMValidationError(f"{names} exclude one another: give one.", parameter=wanted[0].place)
        return next(iter(wanted), None)

    def _structured(self) -> Form | None:
        if self.structured_outputs is None:
            return None
        fields = self.structured_outputs
        for name in fields:
            if name not in _FIELDS:
                close = difflib.get_close_matches(name, _FIELDS, n=1) or _FIELDS
                raise refusal(f"structured_outputs.{name[:64]}", f"is unknown. Did you mean `{close[0]}`?")
        kind = next((name for name in _FIELDS if fields.get(name) is not None), _FIELDS[0])
        return Form(kind, f"structured_outputs.{kind}", fields)

    def _guided(self) -> Form | None:
        values = {name: getattr(self, f"guided_{name}") for name in _GUIDED}
        wanted = {name: value for name, value in values.items() if value is not None and value is not False}
        if wanted:
            kind = next(iter(wanted))
            wanted["backend"] = self.guided_decoding_backend
            wanted["whitespace_pattern"] = self.guided_whitespace_pattern
            return Form(kind, f"guided_{kind}", wanted)
        if self.guided_whitespace_pattern or self.guided_decoding_backend:
            raise VLLMValidationError(
                "`guided_whitespace_pattern` and `guided_decoding_backend` need `guided_json` or another constraint.",
                parameter="guided_decoding_backend",
            )
        return None


def _of_response_format(given: dict[str, Any] | None, route: str) -> Form | None:
    """OpenAI's types, and those that other servers have: a schema beside `json_object` (llama.cpp), a schema that lies
    flat, and what TGI and Fireworks call json, regex and grammar."""
    if given is None:
        return None
    kind = given.get("type")
    known = _FORMATS.get(kind) if isinstance(kind, str) else None
    if known is None:
        names = ", ".join(_FORMATS)
        raise refusal(f"{_FORMAT}.type", f"must be one of {names}, not {str(kind)[:32]!r}.")
    if known.keys is not None:
        check_fields(given, Fields(("type", *known.keys)), route, _FORMAT)
    return known.read(given, route)


def _text(given: dict[str, Any], route: str) -> None:
    return None


def _tags(given: dict[str, Any], route: str) -> Form:
    return Form("structural_tag", _FORMAT, {"structural_tag": json.dumps(given)})


def _json_object(given: dict[str, Any], route: str) -> Form:
    if (schema := given.get("schema")) is not None:
        return _schema_form(schema, f"{_FORMAT}.schema")
    return Form("json_object", _FORMAT, {"json_object": True})


def _json_schema(given: dict[str, Any], route: str) -> Form:
    if "json_schema" not in given and "schema" in given:
        return _schema_form(given["schema"], f"{_FORMAT}.schema")
    described = given.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise refusal(_FORMAT, 'of type json_schema needs `json_schema`: {"name": ..., "schema": {...}}.')
    check_fields(described, Fields(_SCHEMA_KEYS), route, f"{_FORMAT}.json_schema")
    return _schema_form(described["schema"], f"{_FORMAT}.json_schema.schema")


def _schema_form(schema: Any, place: str) -> Form:
    if not isinstance(schema, dict):
        raise refusal(place, "must be a JSON schema: an object.")
    return Form("json", place, {"json": schema})


def _json(given: dict[str, Any], route: str) -> Form:
    if given.keys() <= {"type"}:
        return _json_object(given, route)
    return _valued("json", "schema", "value")(given, route)


def _valued(kind: str, *keys: str) -> Callable[[dict[str, Any], str], Form]:
    """A form whose description stands under one of `keys`."""

    def read(given: dict[str, Any], route: str) -> Form:
        found = [key for key in keys if given.get(key) is not None]
        if len(found) != 1:
            raise refusal(_FORMAT, f"of type {given['type']} needs {' or '.join(f'`{key}`' for key in keys)}.")
        return Form(kind, f"{_FORMAT}.{found[0]}", {kind: given[found[0]]})

    return read


class _Format(NamedTuple):
    """A type of `response_format`. keys: what it may hold beside its type; None for anything."""

    read: Callable[[dict[str, Any], str], Form | None]
    keys: tuple[str, ...] | None


_SCHEMA_KEYS = ("name", "description", "schema", "strict")
_FORMATS = {
    "text": _Format(_text, ()),
    "json_object": _Format(_json_object, ("schema",)),
    "json_schema": _Format(_json_schema, ("json_schema", *_SCHEMA_KEYS)),
    "structural_tag": _Format(_tags, None),
    "json": _Format(_json, ("schema", "value")),
    "regex": _Format(_valued("regex", "pattern", "regex", "value"), ("pattern", "regex", "value")),
    "grammar": _Format(_valued("grammar", "grammar", "value"), ("grammar", "value")),
}
