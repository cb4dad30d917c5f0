"""Configs whose settings lie elsewhere than Llama's: in a text part of their own, or under names of their own.

Models that read images too (Llama 4, Gemma 3, ...) keep the decoder's settings in `text_config`. They are raised to the
top, so that one spelling serves every reader; the section stays where it is, and `lowered` puts them back into it. An
entry at the top wins over the section's, which makes raising idempotent, and lets one entry be overridden at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

TEXT = "text_config"
_OF_THE_WHOLE = frozenset({"architectures", "model_type", "tie_word_embeddings", "torch_dtype", "dtype"})
"""Entries that belong to the model, whatever its text part says under the same names."""
_NORMALISED = ("rope_theta", "rope_scaling", "head_dim", "num_key_value_heads")
"""Entries of the text part that normal form may add."""
_OTHER_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
}
_OTHER_PLACES = {
    ("attn_config", "kv_n_heads"): "num_key_value_heads",
    ("ffn_config", "ffn_hidden_size"): "intermediate_size",
    ("ffn_config", "moe_num_experts"): "num_local_experts",
    ("ffn_config", "moe_top_k"): "num_experts_per_tok",
}


def raised(raw: Mapping[str, Any]) -> Config:
    """`raw` with the settings of its decoder at the top, under Hugging Face's usual names."""
    config = dict(raw)
    text = raw.get(TEXT)
    if isinstance(text, Mapping):
        config = {**text, **{name: value for name, value in raw.items() if value is not None or name not in text}}
    for given, usual in _OTHER_NAMES.items():
        if given in config:
            config.setdefault(usual, config[given])
    for (section, given), usual in _OTHER_PLACES.items():
        if isinstance(config.get(section), Mapping) and given in config[section]:
            config.setdefault(usual, config[section][given])
    return config


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """`config`, raised, with single entries replaced, at the top or in the text part."""
    of_text = overrides.get(TEXT)
    if not isinstance(of_text, Mapping) or TEXT not in config:
        return {**config, **overrides}
    rest = {name: value for name, value in overrides.items() if name != TEXT}
    return {**config, **of_text, **rest, TEXT: {**config[TEXT], **of_text}}


def lowered(config: Mapping[str, Any]) -> Config:
    """The inverse of `raised`: what was raised is in the text part alone, as it is now. Others are left as they are."""
    text = config.get(TEXT)
    if not isinstance(text, Mapping):
        return dict(config)
    names = [name for name in (*text, *_NORMALISED) if name in config and name not in _OF_THE_WHOLE]
    return {
        **{name: value for name, value in config.items() if name not in names},
        TEXT: {**text, **{name: config[name] for name in names}},
    }
