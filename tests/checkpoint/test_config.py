"""The normal form: equal to what transformers' own config classes make of a config.json."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.hf import rope_of
from tests.tiny import CONFIGS
from vllm.checkpoint import CheckpointError, context_length, normalise_config

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
COMPARED = [
    *SIZES,
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "bos_token_id",
    "pad_token_id",
    "sliding_window",
]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"eos_token_id": [5, 6], "bos_token_id": 7, "pad_token_id": 8},
    ],
)
def test_agrees_with_transformers(family: str, extra: dict[str, Any]) -> None:
    """What a sparse config.json leaves out is filled in as transformers does."""
    raw = {"model_type": family, **SIZES, **extra}
    ours, theirs = normalise_config(raw), CONFIGS[family](**SIZES, **extra)
    expected = {key: getattr(theirs, key, None) for key in COMPARED}
    if family in ("llama", "seed_oss"):
        expected["sliding_window"] = None  # it keeps the key, and its attention never reads it
    elif family.startswith("qwen") and not theirs.use_sliding_window:
        expected["sliding_window"] = None  # transformers 4.51 keeps the default, and its attention does not read it
    assert {key: ours[key] for key in COMPARED} == expected
    assert ours["head_dim"] == (getattr(theirs, "head_dim", None) or 16)
    rope = rope_of(theirs)
    assert ours["rope_theta"] == rope["rope_theta"]
    assert (ours["rope_scaling"] or {"rope_type": "default"})["rope_type"] == rope["rope_type"]
    eos = theirs.eos_token_id
    assert ours["eos_token_id"] == (eos if isinstance(eos, list) else [eos] if eos is not None else [])
    if hasattr(theirs, "layer_types"):
        assert ours["layer_types"] == theirs.layer_types


@pytest.mark.parametrize("family", CONFIGS)
def test_normalising_twice_changes_nothing(family: str) -> None:
    raw = {"model_type": family, **SIZES, "dtype": "bfloat16", "sliding_window": 4, "use_sliding_window": True}
    raw["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 3e4, "partial_rotary_factor": 0.5}
    once = normalise_config(raw)
    assert normalise_config(once) == once
    assert once["torch_dtype"] == "bfloat16"
    assert once["rope_scaling"] == {"rope_type": "yarn", "factor": 2.0}
    assert (once["rope_theta"], once["partial_rotary_factor"]) == (3e4, 0.5)


def test_overrides_can_be_merged_into_a_normal_form() -> None:
    config = normalise_config({"model_type": "llama", **SIZES})
    changed = normalise_config({**config, "rope_parameters": {"rope_type": "linear", "factor": 4.0}, "head_dim": 8})
    assert changed["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert changed["head_dim"] == 8


def test_what_others_write_is_kept() -> None:
    config = normalise_config({"model_type": "qwen3_moe", **SIZES, "num_experts": 8, "architectures": ["X"]})
    assert config["num_experts"] == 8
    assert config["head_dim"] == 16
    assert normalise_config({"model_type": "gpt2", "n_embd": 768})["n_embd"] == 768


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(CheckpointError) as error:
        normalise_config({"model_type": "llama", "hidden_size": "64", "num_attention_heads": 0, "rope_theta": "big"})
    for fault in ("hidden_size is '64'", "num_attention_heads is 0", "vocab_size is missing", "rope_theta is 'big'"):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "3 attention heads cannot share 2 key/value heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than"),
        ({"head_dim": 2**31}, "heads of 2147483648 dimensions are more than 65536"),
        ({"hidden_size": 2**31}, "heads of 536870912 dimensions are more than 65536"),
    ],
)
def test_impossible_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise_config({"model_type": "llama", **SIZES, **change})


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "linear", "factor": 4.0}, 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 2.0}, 4096),
    ],
)
def test_context_length(scaling: dict[str, Any] | None, expected: int) -> None:
    config = normalise_config({"model_type": "llama", **SIZES, "rope_scaling": scaling})
    assert context_length(config) == expected


def test_every_family_is_known_to_transformers() -> None:
    for family, config_class in CONFIGS.items():
        architecture = normalise_config({"model_type": family, **SIZES})["architectures"][0]
        assert transformers.AutoModelForCausalLM._model_mapping[config_class].__name__ == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": "linear"},
            r"rope_scaling is 'linear', expected an object such as \{\"rope_type\": \"linear\"",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, r"rope_scaling\.factor is '2', expected a positive"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}},
            "rope_parameters has sets for full_attention, sliding_attention that differ",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": 7}}}, r"rope_parameters\.full_attention\.rope_type is 7"),
        ({"eos_token_id": 2.5}, "eos_token_id is 2.5, expected a token id or a list of them"),
        ({"eos_token_id": [[2]]}, r"eos_token_id is \[\[2\]\]"),
        ({"bos_token_id": 2**40}, "bos_token_id is 1099511627776"),
        ({"rope_theta": "xxxxxxxxxx"}, "rope_theta is 'xxxxxxxxxx', expected a positive number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"layer_types": ["chunked_attention"] * 3}, "expected a list of full_attention and sliding_attention"),
        ({"architectures": 7}, "architectures is 7, expected a list of names"),
        ({"head_dim": True}, "head_dim is True, expected a positive integer"),
    ],
)
def test_entries_of_the_wrong_kind(change: dict[str, Any], message: str) -> None:  # M5, S7
    with pytest.raises(CheckpointError, match=message):
        normalise_config({"model_type": "llama", **SIZES, **change})


def test_equal_ropes_by_layer_type_are_one() -> None:  # M5
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    raw = {"model_type": "llama", **SIZES, "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)}}
    config = normalise_config(raw)
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, {"rope_type": "linear", "factor": 2.0})


@pytest.mark.parametrize("model_type", ["Yi", "internlm3", None])
def test_a_known_architecture_of_an_unknown_family(model_type: str | None) -> None:  # M8
    """The defaults are those of the architecture's family."""
    config = normalise_config({"model_type": model_type, "architectures": ["LlamaForCausalLM"], **SIZES})
    expected = normalise_config({"model_type": "llama", **SIZES})
    assert {**config, "model_type": "llama"} == expected


def test_a_text_is_one_architecture() -> None:  # M8
    config = normalise_config({"model_type": "llama", "architectures": "LlamaForCausalLM", **SIZES})
    assert config["architectures"] == ["LlamaForCausalLM"]
