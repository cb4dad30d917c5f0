"""Mappings and counts as people write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.config import NeuronOptions
from vllm.settings.faults import Faults
from vllm.settings.options import human_int, merged_override, parse_json_option

WANTED = {"override_neuron_config": {"enable_bucketing": False}}


@pytest.mark.parametrize(
    "text",
    [
        '{"override_neuron_config": {"enable_bucketing": false}}',
        '{"override_neuron_config": {"enable_bucketing": False,}}',
        "{'override_neuron_config': {'enable_bucketing': False}}",
        "{override_neuron_config: {enable_bucketing: False}}",
        ' {\n "override_neuron_config": {\n  "enable_bucketing": False,\n },\n}\n',
    ],
)
def test_what_people_paste_is_read(text):
    assert parse_json_option(text) == WANTED


def test_scalars_are_those_of_json_and_python():
    text = "{a: None, b: null, c: True, d: -1, e: 1.5, f: 1e-3, g: on, h: 012, i: 'None', j: [1, 2,], k: 0x10, l: 1:30}"
    expected = {"a": None, "b": None, "c": True, "d": -1, "e": 1.5, "f": 1e-3, "g": "on", "h": "012", "i": "None"}
    expected |= {"j": [1, 2], "k": "0x10", "l": "1:30"}
    assert parse_json_option(text) == expected
    assert type(parse_json_option("{f: 1e3}")["f"]) is float


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN_TEXT = st.text(st.characters(codec="utf-8")).filter(lambda text: repr(text) == f"'{text}'")
VALUES = st.recursive(
    SCALARS | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(PLAIN_TEXT, VALUES, max_size=5))
def test_json_and_python_literals_mean_the_same(value):
    assert parse_json_option(json.dumps(value)) == value
    assert parse_json_option(repr(value)) == value


@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_a_value_error(text):
    try:
        assert isinstance(parse_json_option(text), dict)
    except ValueError as error:
        assert str(error)


def test_an_error_shows_the_place_and_what_would_work():
    with pytest.raises(ValueError) as caught:
        parse_json_option('{"override_neuron_config": {"enable_bucketing": false}')
    lines = str(caught.value).splitlines()
    assert lines[1].strip() == '{"override_neuron_config": {"enable_bucketing": false}'
    assert lines[2].rstrip().endswith("^")
    assert parse_json_option(lines[3].removeprefix("What works: ")) == WANTED


def test_the_caret_stands_under_the_fault():
    text = '{"batch_size": 4, "seq_len" 128}'
    with pytest.raises(ValueError) as caught:
        parse_json_option(text)
    _, shown, caret, *_ = str(caught.value).splitlines()
    assert shown[caret.index("^")] == "1"


def test_a_mapping_without_braces_is_suggested_with_them():
    with pytest.raises(ValueError, match=r'What works: \{"enable_bucketing": false\}'):
        parse_json_option('"enable_bucketing": false')


@pytest.mark.parametrize("text", ["[1, 2]", '"a"', "3", "null", "", "   "])
def test_only_mappings(text):
    with pytest.raises(ValueError):
        parse_json_option(text)


@pytest.mark.parametrize(
    "text",
    [
        "{a: !!python/object/apply:os.system ['true']}",
        "{a: &x [1], b: *x}",
        "{a: &x 1}",
        "{? [1]: 2}",
        "{a: 1, a: 2}",
        '{"a": 1, "a": 2}',
        "{a: " + "[" * 5000 + "]" * 5000 + "}",
    ],
    ids=["tag", "alias", "anchor", "list as key", "twice", "twice in JSON", "deep"],
)
def test_what_yaml_could_do_beyond_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json_option(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("1k", 1000), ("1K", 1024), ("25.6k", 25600), ("2M", 2**21), ("3g", 3 * 10**9), ("-1", -1)],
)
def test_counts(text, value):
    assert human_int(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "1.5K", "1.0001k", "1kk", "0x10", "1e3", "four"])
def test_counts_that_are_none(text):
    with pytest.raises(ValueError, match="Use for example"):
        human_int(text)


def _merge(**options):
    faults = Faults()
    return merged_override(NeuronOptions(**options), faults), [str(fault) for fault in faults.found]


def test_all_spellings_of_the_override_are_one():
    spelt = {"override-neuron-config": {"batch_size": 4}, "override_neuron_config": {"seq_len": 128}}
    merged, faults = _merge(additional_config=spelt, override_neuron_config={"batch_size": 4, "fused_qkv": True})
    assert merged == {"batch_size": 4, "seq_len": 128, "fused_qkv": True}
    assert not faults


def test_contradicting_spellings_are_a_fault():
    _, faults = _merge(
        additional_config={"override-neuron-config": {"batch_size": 4}}, override_neuron_config={"batch_size": 8}
    )
    assert len(faults) == 1
    assert "batch_size" in faults[0] and "says 4" in faults[0] and "says 8" in faults[0]


def test_unknown_keys_beside_the_override_name_the_nearest():
    _, faults = _merge(additional_config={"overide_neuron_config": {}, "override_neuron_config": 3})
    assert any("Did you mean 'override_neuron_config'?" in fault for fault in faults)
    assert any("expected a mapping" in fault for fault in faults)


def test_the_users_mappings_are_left_alone():
    inner = {"batch_size": 4, "on_device_sampling_config": {"top_k": 5}}
    outer = {"override_neuron_config": inner}
    _merge(additional_config=outer)
    assert outer == {"override_neuron_config": {"batch_size": 4, "on_device_sampling_config": {"top_k": 5}}}
