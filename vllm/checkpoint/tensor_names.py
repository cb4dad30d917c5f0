"""A checkpoint's tensors under the names that models read, and what of its config the names decide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from vllm.checkpoint.config import Config, family_of
from vllm.checkpoint.config_checks import unusable
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.tensor import Tensor

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_BARE = re.compile(r"(embed_tokens|norm|layers)\..+")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_Q_BIAS = ".self_attn.q_proj.bias"


def spelled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as a model with an output matrix has them: those of one saved without begin with `model.` too."""
    if EMBEDDING in tensors or EMBEDDING.removeprefix("model.") not in tensors:
        return dict(tensors)
    names = {name: f"model.{name}" if _BARE.fullmatch(name) else name for name in tensors}
    return {names[name]: replace(tensor, name=names[name]) for name, tensor in tensors.items()}


def layers_of(names: Iterable[str]) -> list[int]:
    """The numbers of the decoder layers that tensors of these names belong to, ascending."""
    return sorted({int(match[1]) for name in names if (match := _LAYER.match(name))})


def fit_config(config: Config, tensors: dict[str, Tensor], file: Path) -> Config:
    """The config with what the tensors decide. Where tied embeddings have one name only, the other is added.

    file: the config's, for errors. Raises CheckpointError for a config that announces layers which are not there.
    """
    if not tensors:
        return config
    layers, announced = layers_of(tensors), config.get("num_hidden_layers")
    if layers and announced is not None and layers[-1] + 1 < announced:
        why = f"num_hidden_layers is {announced}, and the last layer in the files is {layers[-1]}"
        raise CheckpointError(f"{file}: {unusable(why)}; is the download complete?")
    if config.get("tie_word_embeddings") and EMBEDDING not in tensors and OUTPUT in tensors:
        tensors[EMBEDDING] = replace(tensors[OUTPUT], name=EMBEDDING)
    if family_of(config) == "qwen2":
        # It always has these biases in transformers, whatever its config says.
        return {**config, "attention_bias": any(name.endswith(_Q_BIAS) for name in tensors)}
    return config
