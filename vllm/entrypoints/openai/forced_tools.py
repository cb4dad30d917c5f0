"""`tool_choice` required or of one function: the schema that the output must then have."""

from __future__ import annotations

import json
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def named_function(choice: Any) -> str | None:
    """The function that a `tool_choice` names."""
    return str(choice["function"]["name"]) if isinstance(choice, dict) else None


def forces_calls(choice: Any) -> bool:
    return choice == "required" or isinstance(choice, dict)


def calls_constraint(tools: list[dict[str, Any]], choice: Any, several: bool) -> StructuredOutputsParams:
    """For one function the schema of its arguments; else a list of calls, of one if not `several`."""
    if (name := named_function(choice)) is not None:
        named = next(tool for tool in tools if tool["function"]["name"] == name)
        return StructuredOutputsParams(json=_parameters(named))
    definitions: dict[str, Any] = {}
    calls = [_call_schema(tool, definitions) for tool in tools]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not several:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return StructuredOutputsParams(json=schema)


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool["function"].get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise VLLMValidationError("`tools[].function.parameters` must be a JSON schema.", parameter="tools")
    return parameters or _NOTHING


def _call_schema(tool: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call; what its parameters define goes to where references look for it."""
    parameters = dict(_parameters(tool))
    defined = parameters.pop("$defs", {})
    for name, definition in (defined if isinstance(defined, dict) else {}).items():
        if name in definitions and json.dumps(definitions[name]) != json.dumps(definition):
            raise VLLMValidationError(f"`tools` define {name[:64]!r} in two ways: rename one.", parameter="tools")
        definitions[name] = definition
    return {
        "type": "object",
        "properties": {"name": {"const": tool["function"]["name"]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
