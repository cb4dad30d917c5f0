"""`tool_choice` required or of one function: the schema that the output must then have."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        return StructuredOutputsParams(json=parameters_of(named))
    return StructuredOutputsParams(json=calls_schema(tools, "parameters", several))


def calls_schema(tools: Sequence[dict[str, Any]], key: str, several: bool) -> dict[str, Any]:
    """A list of calls, each {"name": ..., key: arguments}."""
    one = call_schema(tools, key)
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": one}
    if not several:
        schema["maxItems"] = 1
    if "$defs" in one:
        schema["$defs"] = one.pop("$defs")
    return schema


def call_schema(tools: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """One call of any of the tools."""
    definitions: dict[str, Any] = {}
    calls = [_call_of(tool, key, definitions) for tool in tools]
    return {"anyOf": calls, "$defs": definitions} if definitions else {"anyOf": calls}


def parameters_of(tool: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments. Raises VLLMValidationError for what is none."""
    parameters = tool["function"].get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise VLLMValidationError("`tools[].function.parameters` must be a JSON schema.", parameter="tools")
    return parameters or _NOTHING


def _call_of(tool: dict[str, Any], key: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call; what its parameters define goes to where references look for it."""
    parameters = dict(parameters_of(tool))
    defined = parameters.pop("$defs", {})
    for name, definition in (defined if isinstance(defined, dict) else {}).items():
        if name in definitions and json.dumps(definitions[name]) != json.dumps(definition):
            raise VLLMValidationError(f"`tools` define {name[:64]!r} in two ways: rename one.", parameter="tools")
        definitions[name] = definition
    return {
        "type": "object",
        "properties": {"name": {"const": tool["function"]["name"]}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
    }
