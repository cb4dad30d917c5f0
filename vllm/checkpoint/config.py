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

import math
from typing import Any

from vllm.checkpoint.errors import CheckpointError
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
}
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
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_POSITIVE = (*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings")
_MAX_LAYERS = 10_000
_DEFAULT_ROPE_THETA = 10_000.0


def normalise_config(raw: Config) -> Config:
    """The normal form of `raw`. Raises CheckpointError for missing or impossible entries, all of them at once."""
    config = {key: value for key, value in raised(raw).items() if key != "dtype"}
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None:
        _fill_family_defaults(config, family)
    _check(config, required=_REQUIRED if family is not None else ())
    _normalise_heads(config)
    _normalise_rope(config)
    if family is not None:
        _normalise_window(config)
    config["eos_token_id"] = _as_list(config.get("eos_token_id"))
    config["torch_dtype"] = _dtype_name(raw.get("torch_dtype") or raw.get("dtype") or config.get("torch_dtype"))
    return config


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


def _fill_family_defaults(config: Config, family: Config) -> None:
    if not config.get("architectures"):
        config["architectures"] = [family["architecture"]]
    for key, value in {**_COMMON_DEFAULTS, **family}.items():
        if key != "architecture":
            config.setdefault(key, value)
    config.setdefault("attention_output_bias", config["attention_bias"])
    if config["hidden_act"] == "swish":
        config["hidden_act"] = "silu"


def _check(config: Config, required: tuple[str, ...]) -> None:
    faults = [f"{key} is missing" for key in required if config.get(key) is None]
    for key in _POSITIVE:
        value = config.get(key)
        if value is not None and (type(value) is not int or value <= 0):
            faults.append(f"{key} is {value!r}, expected a positive integer")
    for key in ("rms_norm_eps", "rope_theta"):
        value = config.get(key)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            faults.append(f"{key} is {value!r}, expected a positive number")
    if not faults and config.get("num_hidden_layers", 0) > _MAX_LAYERS:
        faults.append(f"num_hidden_layers is {config['num_hidden_layers']}, more than {_MAX_LAYERS}")
    if faults:
        raise CheckpointError(f"the model's config cannot be used: {'; '.join(faults)}")


def _normalise_heads(config: Config) -> None:
    num_heads, hidden_size = config.get("num_attention_heads"), config.get("hidden_size")
    if num_heads is None or hidden_size is None:
        return
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = num_heads
    if config.get("head_dim") is None:
        config["head_dim"] = hidden_size // num_heads
    if num_heads % config["num_key_value_heads"]:
        raise CheckpointError(
            f"the model's config cannot be used: {num_heads} attention heads cannot share "
            f"{config['num_key_value_heads']} key/value heads evenly"
        )


def _normalise_rope(config: Config) -> None:
    parameters = config.pop("rope_parameters", None) or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        # One set a layer type: no family here has it, and a target that does reads it as it stands.
        config["rope_parameters"] = parameters
        parameters = {}
    scaling = {key: value for key, value in parameters.items() if key not in ("type", "rope_theta")}
    scaling["rope_type"] = parameters.get("rope_type") or parameters.get("type") or "default"
    config["rope_theta"] = float(parameters.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_THETA)
    partial = scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    config["partial_rotary_factor"] = float(partial)
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling


def _normalise_window(config: Config) -> None:
    """Which layers look back how far: as `layer_types` says, else all of them from `max_window_layers` on.

    Llama has no window, Mistral's holds for every layer whatever `layer_types` says, Qwen's only if it is switched on.
    """
    model_type, num_layers = config["model_type"], config["num_hidden_layers"]
    if model_type == "llama" or (model_type.startswith("qwen") and not config.get("use_sliding_window", False)):
        config["sliding_window"] = None
    if config["sliding_window"] is None:
        config["layer_types"] = ["full_attention"] * num_layers
    elif model_type == "mistral" or not config.get("layer_types"):
        num_full = min(config.get("max_window_layers", 0), num_layers)
        config["layer_types"] = ["full_attention"] * num_full + ["sliding_attention"] * (num_layers - num_full)
    if len(config["layer_types"]) != num_layers:
        raise CheckpointError(
            f"the model's config cannot be used: {len(config['layer_types'])} layer_types for {num_layers} layers"
        )


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _dtype_name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
