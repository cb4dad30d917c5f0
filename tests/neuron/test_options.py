"""Mappings and counts as people write them."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.neuron.configs import build
from vllm import EngineArgs
from vllm.config import NeuronOptions
from vllm.settings.faults import Faults
from vllm.settings.options import human_int, merged_override, parse_json_option
from vllm.settings.resolve import resolve

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


@pytest.mark.parametrize("name", ["override_neuron_config", "hf_overrides", "additional_config", "speculative_config"])
def test_a_mappings_example_is_of_its_own_option(name, tiny_llama):  # N16
    """Whoever follows the message is understood."""
    args = {"model": str(tiny_llama), "device": "null", "max_model_len": 64}
    with pytest.raises(ValueError, match=f"{name}: expected a mapping") as caught:
        EngineArgs(**args, **{name: "[1]"}).create_engine_config()
    example = re.search(r"For example: (\{.*\})", str(caught.value))[1]
    assert EngineArgs(**args, **{name: example}).create_engine_config()


def test_texts_and_nesting_that_templates_make():  # N4, N16
    wanted = {"enable_bucketing": False}
    text = json.dumps(wanted)
    assert parse_json_option(json.dumps(text)) == wanted
    for override in (text, {"override_neuron_config": wanted}, {"override-neuron-config": text}):
        assert _merge(override_neuron_config=override) == (wanted, [])
        assert _merge(additional_config={"override_neuron_config": override}) == (wanted, [])
    sampling = {"global_topk": 64}
    assert _merge(override_neuron_config={"on_device_sampling_config": json.dumps(sampling)}) == (
        {"on_device_sampling_config": sampling},
        [],
    )
    _, faults = _merge(additional_config={"override_neuron_config": "[1]"})
    assert len(faults) == 1 and '{"enable_bucketing": false}' in faults[0]


def test_objects_with_attributes_stand_for_their_fields():  # N11
    section = SimpleNamespace(do_sample=True, global_topk=64, _private=1)
    merged, faults = _merge(override_neuron_config={"on_device_sampling_config": section})
    assert (merged, faults) == ({"on_device_sampling_config": {"do_sample": True, "global_topk": 64}}, [])
    config = resolve(build(override_neuron_config={"on_device_sampling_config": section}))
    assert config.neuron_config.global_topk == 64 and config.neuron_config.on_device_sampling_config.dynamic


def test_keys_that_guides_print_and_nobody_reads_are_noted():
    faults = Faults()
    given = {"kv_cache_tiling": False, "scratch_pad_size": 1024, "max_prompt_length": 64, "fused-qkv": True}
    assert merged_override(NeuronOptions(override_neuron_config=given), faults) == {
        "max_context_length": 64,
        "fused_qkv": True,
    }
    assert not faults and len(faults.notes) == 2
