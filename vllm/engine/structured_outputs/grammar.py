"""From a constraint, as users write it, to a grammar of llguidance. Runs in the sandbox: any input may come.

Faults of the constraint are ValueErrors whose message is for the user.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher, LLTokenizer, StructTag
from llguidance.gbnf_to_lark import gbnf_to_lark

from vllm.engine.structured_outputs.schema import fitted

Constraint = dict[str, Any]
"""The fields of a `StructuredOutputsParams` that are set."""

_EXAMPLE_TAG = '{"structures": [{"begin": "<f>", "schema": {...}, "end": "</f>"}], "triggers": ["<f>"]}'


def build_grammar(constraint: Constraint, tokenizer: LLTokenizer) -> str:
    """The grammar's text. That it compiles is still to be seen."""
    if "json" in constraint:
        return _json_grammar(_schema(constraint["json"], "the schema"), constraint)
    if "json_object" in constraint:
        return _json_grammar({"type": "object"}, constraint)
    if "regex" in constraint:
        return LLMatcher.grammar_from_regex(constraint["regex"])
    if "choice" in constraint:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_literal, constraint["choice"])))
    if "grammar" in constraint:
        return LLMatcher.grammar_from_lark(_lark(constraint["grammar"]))
    return _tag_grammar(_object(constraint["structural_tag"], "the structural tag"), tokenizer)


def json_schema_of(constraint: Constraint) -> Any:
    """That of a constraint which has one, and which `build_grammar` takes; else None."""
    return fitted(_schema(constraint["json"], "the schema")) if "json" in constraint else None


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json_grammar(schema: Any, constraint: Constraint) -> str:
    if constraint.get("disable_additional_properties"):
        schema = _closed(schema)
    options: dict[str, Any] = {
        "coerce_one_of": True,
        "whitespace_flexible": not constraint.get("disable_any_whitespace", False),
    }
    if constraint.get("whitespace_pattern") is not None:
        options["whitespace_pattern"] = constraint["whitespace_pattern"]
    return LLMatcher.grammar_from_json_schema(json.dumps(fitted(schema)), overrides=options)  # type: ignore[arg-type]


def _schema(value: Any, what: str) -> Any:
    schema = _parsed(value, what)
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"{what} must be an object, not {type(schema).__name__}")
    return schema


def _object(value: Any, what: str) -> dict[str, Any]:
    parsed = _parsed(value, what)
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} must be an object, not {type(parsed).__name__}")
    return parsed


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None


def _closed(schema: Any) -> Any:
    """The schema with additionalProperties false wherever it lists properties and leaves others open."""
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(entry) for name, entry in schema.items()}
    if isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _lark(grammar: str) -> str:
    """GBNF and EBNF define rules by `::=`, Lark by a colon."""
    if "::=" not in grammar:
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except RecursionError:
        raise ValueError("the grammar is nested too deeply") from None
    except Exception as error:
        raise ValueError(f"the grammar cannot be read as GBNF: {error}") from None


def _tag_grammar(tag: dict[str, Any], tokenizer: LLTokenizer) -> str:
    if "format" in tag:
        raise ValueError(f"structural tags with `format` are not supported; write them as {_EXAMPLE_TAG}")
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list) or not structures:
        raise ValueError(f"a structural tag needs `structures` and `triggers`, as in {_EXAMPLE_TAG}")
    if not all(isinstance(trigger, str) and trigger for trigger in triggers):
        raise ValueError("`triggers` must be non-empty texts")
    tags = [_struct_tag(structure, triggers) for structure in structures]
    special = all(_is_special(tag.trigger, tokenizer) for tag in tags)
    return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=special))


def _struct_tag(structure: Any, triggers: list[str]) -> StructTag:
    begin, end = (structure.get("begin"), structure.get("end")) if isinstance(structure, dict) else (None, None)
    if not isinstance(begin, str) or not isinstance(end, str):
        raise ValueError("each of `structures` needs the texts `begin` and `end`")
    for trigger in triggers:
        if begin.startswith(trigger):
            schema = fitted(_object(structure.get("schema", {}), "the schema of a structural tag"))
            return StructTag(trigger=trigger, begin=begin, grammar=schema, end=end)
    raise ValueError(f"no trigger begins {begin[:64]!r}: a structure is recognised by its trigger")


def _is_special(text: str, tokenizer: LLTokenizer) -> bool:
    """Whether a text is one token that no other text can give."""
    ids = tokenizer.tokenize_str(text, parse_special=True)
    return len(ids) == 1 and tokenizer.is_special_token(ids[0])
