"""Schemas are rewritten without a change of meaning (jsonschema is the judge), and faults are found where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from vllm.engine.structured_outputs.grammar import build_grammar
from vllm.engine.structured_outputs.sandbox import judge
from vllm.engine.structured_outputs.schema import SchemaFault, fitted

INTEGER: Any = {"type": "integer"}
ENUM = {"enum": ["a", "b", 7]}
SAME: list[Any] = [
    {"propertyNames": {"type": "string"}, "additionalProperties": {}},  # A5
    {"type": "object", "propertyNames": True},
    {"type": "object", "propertyNames": {"description": "d"}, "properties": {"a": INTEGER}},
    {"type": "object", "propertyNames": ENUM, "additionalProperties": INTEGER},
    {"type": "object", "propertyNames": ENUM, "properties": {"b": INTEGER, "x1": INTEGER}, "required": ["b"]},
    {"type": "object", "propertyNames": ENUM, "additionalProperties": False, "properties": {"a": INTEGER}},
    {"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": ENUM}, "additionalProperties": INTEGER},
    {"type": "object", "propertyNames": {"anyOf": [{"const": "a"}, {"enum": ["x1"]}]}},
    {"type": "object", "propertyNames": False},
    {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": INTEGER},
    {"type": "object", "propertyNames": {"type": "string", "minLength": 1, "maxLength": 1}},
    {"type": "object", "propertyNames": {"minLength": 2}, "additionalProperties": INTEGER},
    {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
    {"type": "object", "anyOf": [{"properties": {"a": INTEGER}}], "unevaluatedProperties": True},
    {"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False},
    {"type": "array", "items": INTEGER, "uniqueItems": False, "minContains": 2},
    {"type": "array", "uniqueItems": True, "maxItems": 1},
    {"type": "object", "dependentRequired": {}, "if": {"required": ["a"]}},
    {"type": "string", "format": "password"},
    {"type": "object", "patternProperties": {"^(a|x1)$": INTEGER}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"minimum": 2}}, "patternProperties": {"^a$": INTEGER, "^x": INTEGER}},
    {"type": "array", "items": {"type": "object", "propertyNames": ENUM}},
]
SCALARS = st.one_of(st.integers(0, 3), st.sampled_from(["a", "secret"]), st.none(), st.booleans())
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "x1", "xy", ""]), SCALARS, max_size=3)
VALUES = st.one_of(SCALARS, OBJECTS, st.lists(st.one_of(SCALARS, OBJECTS), max_size=3))


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> LLTokenizer:
    return LLTokenizer((tiny_llama / "tokenizer.json").read_text(), n_vocab=320)


@pytest.mark.parametrize("schema", SAME, ids=lambda schema: json.dumps(schema)[:60])
@settings(max_examples=30)
@given(values=st.lists(VALUES, max_size=20))
def test_the_same_values_fit(schema: Any, values: list[Any]) -> None:
    before = json.dumps(schema)
    rewritten = fitted(schema)
    assert json.dumps(schema) == before
    ours, theirs = jsonschema.Draft202012Validator(rewritten), jsonschema.Draft202012Validator(schema)
    for value in values:
        assert ours.is_valid(value) == theirs.is_valid(value), (value, rewritten)


@pytest.mark.parametrize("schema", SAME, ids=lambda schema: json.dumps(schema)[:60])
def test_they_compile(schema: Any, tokenizer: LLTokenizer) -> None:
    assert "grammar" in judge({"json": schema}, tokenizer)
    assert "grammar" in judge({"json": json.dumps({"properties": {"m": schema}, "$defs": {"n": ENUM}})}, tokenizer)


def test_names_that_a_pattern_lists_are_not_repeated(tokenizer: LLTokenizer) -> None:
    schema = {"type": "object", "patternProperties": {"^(a|b)$": INTEGER, "^c d$": INTEGER}}
    matcher = LLMatcher(tokenizer, build_grammar({"json": {**schema, "additionalProperties": False}}, tokenizer))
    for text, fits in (('{"a":1,"b":2,"c d":3}', True), ('{"b":2}', True), ('{"a":1,"a":2}', False)):
        tokens = tokenizer.tokenize_str(text)
        assert (matcher.deep_copy().validate_tokens(tokens) == len(tokens)) == fits


@pytest.mark.parametrize(
    ("schema", "place", "says"),
    [
        ({"not": INTEGER}, "", "not"),
        ({"properties": {"m": {"type": "array", "uniqueItems": True}}}, ".properties.m", "uniqueItems"),
        ({"anyOf": [INTEGER, {"items": {"not": {}}}]}, ".anyOf[1].items", "not"),
        ({"properties": {"m": {"$ref": "#/$defs/d"}}, "$defs": {"d": {"items": {"not": {}}}}}, ".$defs.d.items", "not"),
        ({"properties": {"a": {"pattern": "a"}, "m": {"type": "string", "pattern": "(?=a)"}}}, ".properties.m", "look"),
        ({"properties": {"m": {"type": "any"}}}, ".properties.m", "any"),
        ({"properties": {"m": {"propertyNames": {"not": {}}}}}, ".properties.m.propertyNames", "propertyNames"),
        ({"propertyNames": {"enum": ["a"]}, "required": ["b"]}, ".propertyNames", "'b' is required"),
        ({"propertyNames": {"pattern": "a"}, "properties": {"b": {}}}, ".propertyNames", "beside"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}, "c": {"not": 1}}},
         "", ""),
    ],
)  # fmt: skip
def test_faults_are_found_where_they_are(schema: Any, place: str, says: str, tokenizer: LLTokenizer) -> None:
    verdict = judge({"json": schema}, tokenizer)
    assert says in verdict.get("error", "") and verdict.get("place", "") == place


NAMES = st.sampled_from(
    ["properties", "propertyNames", "patternProperties", "items", "anyOf", "$ref", "enum", "format"]
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["#/items", "#", "^a$", "string"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)


@given(schema=ANYTHING)
def test_whatever_comes_is_rewritten_or_refused(schema: Any) -> None:
    try:
        fitted(schema)
    except SchemaFault as fault:
        assert str(fault)
