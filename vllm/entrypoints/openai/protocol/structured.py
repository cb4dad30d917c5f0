"""The fields that ask for an output of a given form, and the one constraint they amount to.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` its older names.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import msgspec
from pydantic import Field

from vllm.entrypoints.openai.protocol.base import OpenAIBaseModel, Strings
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_FIELDS = tuple(field.name for field in msgspec.structs.fields(StructuredOutputsParams))
_GUIDED = ("json", "regex", "choice", "grammar", "json_object")


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

    def constraint(self) -> StructuredOutputsParams | None:
        """What the output must be like, if anything. Raises VLLMValidationError for several forms, or a wrong one."""
        given = {
            "structured_outputs": self._structured(),
            "guided_*": self._guided(),
            "response_format": _of_response_format(self.response_format),
        }
        wanted = {name: fields for name, fields in given.items() if fields}
        if len(wanted) > 1:
            names = " and ".join(f"`{name}`" for name in wanted)
            raise VLLMValidationError(f"{names} exclude one another: give one.", parameter="structured_outputs")
        return next((StructuredOutputsParams(**fields) for fields in wanted.values()), None)

    def _structured(self) -> dict[str, Any]:
        fields = self.structured_outputs or {}
        for name in fields:
            if name not in _FIELDS:
                close = difflib.get_close_matches(name, _FIELDS, n=1) or _FIELDS
                raise VLLMValidationError(
                    f"`structured_outputs.{name[:64]}` is unknown. Did you mean `{close[0]}`?",
                    parameter="structured_outputs",
                )
        if self.structured_outputs is not None and not any(value is not None for value in fields.values()):
            StructuredOutputsParams()
        return dict(fields)

    def _guided(self) -> dict[str, Any]:
        values = {name: getattr(self, f"guided_{name}") for name in _GUIDED}
        wanted = {name: value for name, value in values.items() if value is not None and value is not False}
        if wanted:
            wanted["backend"] = self.guided_decoding_backend
            wanted["whitespace_pattern"] = self.guided_whitespace_pattern
        elif self.guided_whitespace_pattern or self.guided_decoding_backend:
            raise VLLMValidationError(
                "`guided_whitespace_pattern` and `guided_decoding_backend` need `guided_json` or another constraint.",
                parameter="guided_decoding_backend",
            )
        return wanted


def _of_response_format(given: dict[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    kind = given.get("type")
    if kind not in _FORMATS:
        raise _format_error(f"`response_format.type` must be one of {', '.join(_FORMATS)}, not {str(kind)[:32]!r}.")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_object": True}
    if kind == "structural_tag":
        return {"structural_tag": json.dumps(given)}
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise _format_error(
            '`response_format` of type json_schema needs `json_schema`: {"name": ..., "schema": {...}}.'
        )
    return {"json": schema}


def _format_error(message: str) -> VLLMValidationError:
    return VLLMValidationError(message, parameter="response_format")
