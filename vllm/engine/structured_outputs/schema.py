"""JSON schemas as the grammar library takes them.

It lacks some keywords. Where a schema means the same without one, or with others, it is rewritten (`fitted`): names of
properties become properties or patterns, `unevaluated*` becomes `additional*` where nothing else evaluates, keywords
that ask for nothing go. `format` is an annotation: one that the library does not know is dropped. What is left and
cannot be compiled is refused, and `place_of_fault` says where in the schema it stands. Any input may come.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

Schema = Any
"""An object, true or false; of a user's, anything."""

FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
"""Those that the library holds texts to."""
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE_SCHEMAS = (
    "items",
    "additionalProperties",
    "additionalItems",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_EVALUATE = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas")
_ANNOTATIONS = frozenset(("$comment", "default", "deprecated", "description", "examples", "title"))
_ALTERNATIVES = re.compile(r"\^(?:\((?:\?:)?([\w -]+(?:\|[\w -]+)*)\)|([\w -]+))\$")
_MOST_REFERENCES = 16
_MOST_TRIES = 200
_SECONDS = 1.0


class SchemaFault(ValueError):
    """place: of the fault in the schema, as `.properties.a`; empty for the schema itself."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


def fitted(schema: Schema) -> Schema:
    """The schema without what the library lacks, as far as the meaning allows. Raises SchemaFault."""
    return _fitted(schema, schema, "")


def place_of_fault(schema: Schema, fault: str, fault_of: Callable[[Schema], str]) -> str:
    """Of the innermost part that fails as the schema does. fault_of: what is wrong with a schema, or "".

    Looks no longer than a second.
    """
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    deadline, tries = time.monotonic() + _SECONDS, _MOST_TRIES
    place, seen = "", {""}
    node = schema
    while fault:
        for inner, child in _parts(node, schema, place):
            tries -= 1
            if tries < 0 or time.monotonic() > deadline:
                return place
            if inner in seen or not isinstance(child, dict):
                continue
            if fault_of({**definitions, **child}) == fault:
                seen.add(inner)
                place, node = inner, child
                break
        else:
            break
    return place


def _parts(node: Schema, root: Schema, place: str) -> Iterator[tuple[str, Schema]]:
    """The schemas within a schema, or the one that it refers to."""
    if not isinstance(node, dict):
        return
    if node is not root and isinstance(node.get("$ref"), str):
        yield node["$ref"].replace("#/", ".").replace("/", "."), _referred(node["$ref"], root)
    for name in _SCHEMAS_BY_NAME:
        if isinstance(node.get(name), dict) and not (node is root and name in ("$defs", "definitions")):
            yield from ((f"{place}.{name}.{key}", child) for key, child in node[name].items())
    for name in _LISTS_OF_SCHEMAS:
        if isinstance(node.get(name), list):
            yield from ((f"{place}.{name}[{i}]", child) for i, child in enumerate(node[name]))
    yield from ((f"{place}.{name}", node[name]) for name in _SINGLE_SCHEMAS if isinstance(node.get(name), dict))


def _fitted(schema: Schema, root: Schema, place: str) -> Schema:
    if not isinstance(schema, dict):
        return schema
    fit = dict(schema)
    for name in _SCHEMAS_BY_NAME:
        if isinstance(fit.get(name), dict):
            fit[name] = {key: _fitted(child, root, f"{place}.{name}.{key}") for key, child in fit[name].items()}
    for name in _LISTS_OF_SCHEMAS:
        if isinstance(fit.get(name), list):
            fit[name] = [_fitted(child, root, f"{place}.{name}[{i}]") for i, child in enumerate(fit[name])]
    for name in _SINGLE_SCHEMAS:
        if isinstance(fit.get(name), dict):
            fit[name] = _fitted(fit[name], root, f"{place}.{name}")
    _drop_what_asks_for_nothing(fit)
    _close(fit, "unevaluatedProperties", "additionalProperties")
    _close(fit, "unevaluatedItems", "items")
    if "propertyNames" in fit:
        _name_properties(fit, fit.pop("propertyNames"), root, place)
    if isinstance(fit.get("patternProperties"), dict):
        _list_patterns(fit)
    return fit


def _drop_what_asks_for_nothing(schema: dict[str, Any]) -> None:
    if schema.get("uniqueItems") is False or _at_most_one(schema.get("maxItems")):
        schema.pop("uniqueItems", None)
    for name in ("dependentRequired", "dependentSchemas", "dependencies"):
        if schema.get(name) == {}:
            del schema[name]
    if "if" not in schema or not {"then", "else"} & schema.keys():
        for name in ("if", "then", "else"):
            schema.pop(name, None)
    if "contains" not in schema:
        schema.pop("minContains", None)
        schema.pop("maxContains", None)
    if "format" in schema and schema["format"] not in FORMATS:
        del schema["format"]


def _at_most_one(count: Any) -> bool:
    return isinstance(count, int) and count <= 1


def _close(schema: dict[str, Any], unevaluated: str, additional: str) -> None:
    """What nothing else evaluates is what is additional."""
    if unevaluated not in schema:
        return
    value = schema[unevaluated]
    if value in (True, {}) or not any(name in schema for name in _EVALUATE):
        del schema[unevaluated]
        if value not in (True, {}):
            schema.setdefault(additional, value)


def _name_properties(schema: dict[str, Any], names: Schema, root: Schema, place: str) -> None:
    """Say by properties and patterns what `propertyNames` says."""
    at = f"{place}.propertyNames"
    names = _resolved(names, root)
    if names in (True, {}) or (isinstance(names, dict) and _takes_any_text(names)):
        return
    rest = schema.get("additionalProperties", True)
    if schema.get("patternProperties"):
        raise SchemaFault("`propertyNames` beside `patternProperties` is not supported", at)
    listed = _listed_names(names, root)
    if listed is not None:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict) or not isinstance(schema.get("required", []), list):
            return
        if missing := [name for name in schema.get("required", []) if name not in listed]:
            raise SchemaFault(f"the property {str(missing[0])[:64]!r} is required, and its name is not allowed", at)
        kept = {name: child for name, child in properties.items() if name in listed}
        more = {} if rest is False else {name: rest for name in listed if name not in kept}
        schema["properties"] = {**kept, **more}
        schema["additionalProperties"] = False
        return
    pattern = _pattern_of(names)
    if pattern is None:
        raise SchemaFault("of `propertyNames`, type, enum, const, and a pattern or lengths are supported", at)
    if schema.get("properties"):
        raise SchemaFault("`propertyNames` with a pattern beside `properties` is not supported", at)
    if rest is not False:
        schema["patternProperties"] = {pattern: rest}
    schema["additionalProperties"] = False


def _takes_any_text(names: dict[str, Any]) -> bool:
    kinds = names.get("type", "string")
    takes_text = kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
    return takes_text and not names.keys() - _ANNOTATIONS - {"type"}


def _listed_names(names: Schema, root: Schema) -> list[str] | None:
    """Where a schema of names lists them, all of them."""
    names = _resolved(names, root)
    if names is False:
        return []
    if not isinstance(names, dict) or names.get("type", "string") != "string":
        return None
    constraints = names.keys() - _ANNOTATIONS - {"type"}
    if constraints == {"enum"} and isinstance(names["enum"], list):
        return [name for name in names["enum"] if isinstance(name, str)]
    if constraints == {"const"}:
        return [name for name in [names["const"]] if isinstance(name, str)]
    for name in ("anyOf", "oneOf"):
        if constraints == {name} and isinstance(names[name], list):
            lists = [_listed_names(each, root) for each in names[name]]
            return None if None in lists else list(dict.fromkeys(each for found in lists for each in found or ()))
    return None


def _pattern_of(names: Schema) -> str | None:
    if not isinstance(names, dict) or names.get("type", "string") != "string":
        return None
    constraints = names.keys() - _ANNOTATIONS - {"type", "format"}
    if constraints == {"pattern"} and isinstance(names["pattern"], str):
        return names["pattern"]
    if constraints and constraints <= {"minLength", "maxLength"}:
        shortest, longest = names.get("minLength", 0), names.get("maxLength", "")
        if isinstance(shortest, int) and isinstance(longest, int | str):
            return rf"^[\s\S]{{{shortest},{longest}}}$"
    return None


def _list_patterns(schema: dict[str, Any]) -> None:
    """A pattern that is a list of names becomes properties, each of which comes once: names that fit a pattern may be
    repeated."""
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return
    patterns, listed = {}, dict(properties)
    for pattern, child in schema["patternProperties"].items():
        found = _ALTERNATIVES.fullmatch(pattern)
        if found is None:
            patterns[pattern] = child
            continue
        for name in (found[1] or found[2]).split("|"):
            listed[name] = {"allOf": [listed[name], child]} if name in listed else child
    if len(patterns) == len(schema["patternProperties"]):
        return
    schema["properties"] = listed
    if patterns:
        schema["patternProperties"] = patterns
    else:
        del schema["patternProperties"]


def _resolved(schema: Schema, root: Schema) -> Schema:
    """What a schema that is only a reference refers to."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        if schema.keys() - _ANNOTATIONS - {"$ref"}:
            return schema
        schema = _referred(schema["$ref"], root)
    return schema


def _referred(reference: str, root: Schema) -> Schema:
    """None for what is not there, or not here."""
    node = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node if reference.startswith("#") else None
