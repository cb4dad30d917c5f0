"""The normal form of a model's config: one spelling, whatever wrote the file.

Starts from config.json (or a GGUF file's metadata, see `gguf_model`) and keeps every key of it, so targets that know
more can read more. What is always there afterwards, for the families in `FAMILIES`:

    architectures            list of one or more class names
    model_type               "llama", "mistral", "qwen2", "qwen3", ...
    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size,
    max_position_embeddings  positive integers
    rms_norm_eps             float
    hidden_act               str; "silu", never its synonym "swish"
    rope_theta               float
    rope_scaling             None, or {"rope_type": "llama3" | "linear" | "yarn" | "dynamic" | "factors" | ..., ...}:
                             the keys of transformers' rope_parameters without rope_theta. "factors" comes from GGUF:
                             a list `factors` by which each inverse frequency is divided
    partial_rotary_factor    float, the rotated share of a head
    tie_word_embeddings      bool
    attention_bias           bool: q, k and v have biases
    attention_output_bias    bool: the attention's output projection has one
    mlp_bias                 bool
    sliding_window           None or the number of positions a sliding layer sees
    layer_types              a list, one a layer: "full_attention" or "sliding_attention"
    bos_token_id, pad_token_id   int or None
    eos_token_id             list of int, maybe empty
    torch_dtype              "float32", "bfloat16", "float16", or None if the file does not say

For other families the same keys are normalised where they occur, and nothing is required: whether a target can run
the architecture is the target's question. Normalising twice changes nothing, so overrides can be merged into a normal
form and normalised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.checkpoint.config_checks import LAYER_TYPES, MAX_HEAD_DIM, check_entries, unusable
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import read_json
from vllm.checkpoint.nested_config import raised

Config = dict[str, Any]

# What each family's own config class in transformers fills in for keys that a config.json leaves out.
FAMILIES: dict[str, Config] = {
    "llama": {
        "architecture": "LlamaForCausalLM",
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": {
        "architecture": "MistralForCausalLM",
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "architecture": "Qwen2ForCausalLM",
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "attention_bias": True,
        "attention_output_bias": False,
    },
    "qwen3": {
        "architecture": "Qwen3ForCausalLM",
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "ministral": {
        "architecture": "MinistralForCausalLM",
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "seed_oss": {
        "architecture": "SeedOssForCausalLM",
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "attention_output_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "cwm": {
        "architecture": "CwmForCausalLM",
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8192,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
_ARCHITECTURES = {
    **dict.fromkeys(("LLaMAForCausalLM", "YiForCausalLM", "LlamaModel"), "LlamaForCausalLM"),
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
"""Other names of architectures: older ones, and those of models that were saved without their output matrix."""
_SPELLINGS = {"attention_out_bias": "attention_output_bias"}
_FULL_ATTENTION_EVERY = {"cwm": 4}
"""By family: every how many layers one sees all positions, where the config has no layer_types."""
_COMMON_DEFAULTS: Config = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_NEVER_NULL = frozenset({"tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "rms_norm_eps"})
"""Entries for which null means the default, as no value of theirs means none."""
_DEFAULT_ROPE_THETA = 10_000.0


def normalise_config(raw: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Config:
    """The normal form of `raw`. Raises CheckpointError for missing or impossible entries, all of them at once.

    names: what the file that `raw` was read from calls an entry, where that is not its name here.
    """
    config = {key: value for key, value in raised(raw).items() if key != "dtype"}
    check_entries(config, is_known=family_of(config) is not None, names=names or {})
    family = family_of(config)
    _normalise_architectures(config)
    if family is not None:
        _fill_family_defaults(config, FAMILIES[family])
    _normalise_heads(config)
    _normalise_rope(config, family is not None)
    if family is not None:
        _normalise_window(config, family)
    config["eos_token_id"] = _as_list(config.get("eos_token_id"))
    config["torch_dtype"] = _dtype_name(raw.get("torch_dtype") or raw.get("dtype") or config.get("torch_dtype"))
    return config


def read_config(file: Path, beside: Mapping[str, Any] | None = None) -> Config:
    """The normal form of a config.json. Raises CheckpointError that names the file.

    beside: entries that other files say, for those that this one lacks.
    """
    try:
        return normalise_config({**(beside or {}), **read_json(file)})
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def context_length(config: Config) -> int | None:
    """The longest sequence a model (config in normal form) was made for, None if its config does not say.

    Linear and dynamic scaling stretch max_position_embeddings by their factor, yarn the original length it names;
    for the other kinds max_position_embeddings is the stretched length already.
    """
    length: int | None = config.get("max_position_embeddings")
    scaling = config.get("rope_scaling") or {}
    if length is None or scaling.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return length
    if scaling["rope_type"] == "yarn":
        length = scaling.get("original_max_position_embeddings") or length
    return int(length * float(scaling.get("factor") or 1.0))


def family_of(config: Mapping[str, Any]) -> str | None:
    """A name in FAMILIES: the model_type, else that of a known architecture; None for all others."""
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    names = [architectures] if isinstance(architectures, str) else architectures
    known = {family["architecture"]: name for name, family in FAMILIES.items()}
    usual = (_ARCHITECTURES.get(str(name), str(name)) for name in (names if isinstance(names, list) else ()))
    return next((known[name] for name in usual if name in known), None)


def _normalise_architectures(config: Config) -> None:
    given = config.get("architectures")
    if given:
        names = [given] if isinstance(given, str) else given
        config["architectures"] = [_ARCHITECTURES.get(name, name) for name in names]


def _fill_family_defaults(config: Config, family: Config) -> None:
    for given, usual in _SPELLINGS.items():
        if given in config:
            config.setdefault(usual, config[given])
    if not config.get("architectures"):
        config["architectures"] = [family["architecture"]]
    for key, value in {**_COMMON_DEFAULTS, **family}.items():
        if key != "architecture" and (config.get(key) is None if key in _NEVER_NULL else key not in config):
            config[key] = value
    config.setdefault("attention_output_bias", config["attention_bias"])
    if config["hidden_act"] == "swish":
        config["hidden_act"] = "silu"


def _normalise_heads(config: Config) -> None:
    num_heads, hidden_size = config.get("num_attention_heads"), config.get("hidden_size")
    if num_heads is None or hidden_size is None:
        return
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = num_heads
    if config.get("head_dim") is None:
        config["head_dim"] = hidden_size // num_heads
    if config["head_dim"] > MAX_HEAD_DIM:
        raise CheckpointError(unusable(f"heads of {config['head_dim']} dimensions are more than {MAX_HEAD_DIM}"))
    if num_heads % config["num_key_value_heads"]:
        kv_heads = config["num_key_value_heads"]
        why = f"{num_heads} attention heads cannot share {kv_heads} key/value heads evenly"
        raise CheckpointError(unusable(why))


def _normalise_rope(config: Config, is_known: bool) -> None:
    parameters = config.pop("rope_parameters", None) or config.get("rope_scaling") or {}
    if is_known:
        parameters = _one_for_all_layers(parameters)
    elif not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        # One set per layer type: a target that has such a family reads it as it stands.
        config["rope_parameters"] = parameters
        parameters = {}
    scaling = {key: value for key, value in parameters.items() if key not in ("type", "rope_theta")}
    scaling["rope_type"] = parameters.get("rope_type") or parameters.get("type") or "default"
    config["rope_theta"] = float(parameters.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_THETA)
    partial = scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    config["partial_rotary_factor"] = float(partial)
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling


def _one_for_all_layers(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters that are given by layer type, as one set. Raises CheckpointError where they differ."""
    by_type = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if not by_type:
        return parameters
    sets = list(by_type.values())
    if len(by_type) < len(parameters) or any(each != sets[0] for each in sets):
        why = f"rope_parameters has sets for {', '.join(by_type)} that differ; all layers of this family rotate alike"
        raise CheckpointError(unusable(why))
    return dict(sets[0])


def _normalise_window(config: Config, family: str) -> None:
    """Which layers look back how far: as `layer_types` says, else all of them.

    Llama and Seed-OSS have no window, Mistral's holds for every layer whatever `layer_types` says, Qwen's only if it is
    switched on, and from `max_window_layers` on.
    """
    num_layers, (full, sliding) = config["num_hidden_layers"], LAYER_TYPES
    is_qwen = family.startswith("qwen")
    if family in ("llama", "seed_oss") or (is_qwen and not config.get("use_sliding_window")):
        config["sliding_window"] = None
    if not config["sliding_window"]:
        config["sliding_window"] = None
        config["layer_types"] = [full] * num_layers
    elif family in _FULL_ATTENTION_EVERY and not config.get("layer_types"):
        every = _FULL_ATTENTION_EVERY[family]
        config["layer_types"] = [sliding if layer % every else full for layer in range(num_layers)]
    elif family == "mistral" or not config.get("layer_types"):
        num_full = min(config.get("max_window_layers") or 0, num_layers) if is_qwen else 0
        config["layer_types"] = [full] * num_full + [sliding] * (num_layers - num_full)
    if len(config["layer_types"]) != num_layers:
        raise CheckpointError(unusable(f"{len(config['layer_types'])} layer_types for {num_layers} layers"))


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _dtype_name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
