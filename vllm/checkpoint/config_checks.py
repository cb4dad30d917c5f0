"""Whether the entries of a config.json are what their names promise, before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.checkpoint.errors import CheckpointError

MAX_LAYERS = 10_000
MAX_HEAD_DIM = 2**16
"""Frequencies of a head are computed from the config alone: a greater size would fill the memory with them."""
LAYER_TYPES = ("full_attention", "sliding_attention")
_MAX_ID = 2**31
_MAX_COUNT = 2**40

Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _MAX_COUNT


def is_id(value: Any) -> bool:
    """A token id, or a small negative number, which some configs have for none."""
    return type(value) is int and -_MAX_ID <= value < _MAX_ID


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_ids(value: Any) -> bool:
    return is_id(value) or (isinstance(value, list) and all(is_id(item) for item in value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What every model of a known family must say."""
_ALWAYS: dict[str, tuple[Check, str]] = {
    "model_type": (_is_text, "a text"),
    "architectures": (lambda value: _is_text(value) or _is_texts(value), "a list of names"),
    **dict.fromkeys(
        (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"), (is_count, "a positive integer")
    ),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), (is_positive, "a positive number")),
    "bos_token_id": (_is_ids, "a token id"),
    "pad_token_id": (_is_ids, "a token id"),
    "eos_token_id": (_is_ids, "a token id or a list of them"),
    "partial_rotary_factor": (_is_share, "a number above 0, at most 1"),
}
_OF_FAMILIES: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(
        ("tie_word_embeddings", "attention_bias", "attention_output_bias", "mlp_bias", "use_sliding_window"),
        (_is_flag, "true or false"),
    ),
    "hidden_act": (_is_text, "a text"),
    "sliding_window": (_is_size, "a number of positions"),
    "max_window_layers": (_is_size, "a number of layers"),
    "layer_types": (
        lambda value: isinstance(value, list) and all(item in LAYER_TYPES for item in value),
        f"a list of {' and '.join(LAYER_TYPES)}",
    ),
}
_ROPE_NUMBERS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "rope_theta",
)


def check_entries(config: Mapping[str, Any], *, is_known: bool, names: Mapping[str, str]) -> None:
    """Raises CheckpointError that lists every entry that cannot be used. An entry of None counts as absent.

    is_known: whether the family is one whose every setting is read. names: what the file itself calls an entry.
    """
    faults = [f"{names.get(key, key)} is missing" for key in SIZES if is_known and config.get(key) is None]
    for key, (check, expected) in {**_ALWAYS, **(_OF_FAMILIES if is_known else {})}.items():
        value = config.get(key)
        if value is not None and not check(value):
            faults.append(f"{names.get(key, key)} is {shown(value)}, expected {expected}")
    faults += _rope_faults(config, is_known)
    if not faults and (layers := config.get("num_hidden_layers") or 0) > MAX_LAYERS:
        faults.append(f"{names.get('num_hidden_layers', 'num_hidden_layers')} is {layers}, more than {MAX_LAYERS}")
    if faults:
        raise CheckpointError(unusable("; ".join(faults)))


def _rope_faults(config: Mapping[str, Any], is_known: bool) -> Iterator[str]:
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is None or (not isinstance(value, Mapping) and not is_known):
            continue
        if not isinstance(value, Mapping):
            yield f'{key} is {shown(value)}, expected an object such as {{"rope_type": "linear", "factor": 2.0}}'
            continue
        for where, settings in [(key, value), *((f"{key}.{name}", each) for name, each in value.items())]:
            if isinstance(settings, Mapping):
                yield from _faults_of_rope(where, settings)


def _faults_of_rope(where: str, settings: Mapping[str, Any]) -> Iterator[str]:
    for name in _ROPE_NUMBERS:
        if settings.get(name) is not None and not is_positive(settings[name]):
            yield f"{where}.{name} is {shown(settings[name])}, expected a positive number"
    for name in ("mscale", "mscale_all_dim"):
        if settings.get(name) is not None and not is_number(settings[name]):
            yield f"{where}.{name} is {shown(settings[name])}, expected a number"
    for name in ("rope_type", "type"):
        if settings.get(name) is not None and not isinstance(settings[name], str):
            yield f"{where}.{name} is {shown(settings[name])}, expected a text"
    if settings.get("partial_rotary_factor") is not None and not _is_share(settings["partial_rotary_factor"]):
        yield f"{where}.partial_rotary_factor is {shown(settings['partial_rotary_factor'])}, expected a share"


def unusable(why: str) -> str:
    return f"the model's config cannot be used: {why}"


def shown(value: Any) -> str:
    """A value of a file, on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
