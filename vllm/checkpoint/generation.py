"""Defaults of sampling that come with a checkpoint: generation_config.json, or the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm.checkpoint.config_checks import is_id, is_number, shown
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import read_json


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_ids(value: Any) -> bool:
    return is_id(value) or (isinstance(value, list) and all(is_id(item) for item in value))


_READ: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), (is_number, "a number")),
    **dict.fromkeys(("top_k", "max_new_tokens"), (_is_integer, "an integer")),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), (_is_ids, "a token id")),
    "eos_token_id": (_is_ids, "a token id or a list of them"),
}
"""Entries that are read, whether a value can be used, and what it should be. The others are kept as they are."""


def read_generation_config(file: Path) -> dict[str, Any]:
    """A generation_config.json; empty if there is none. Raises CheckpointError for a value that cannot be used."""
    return checked_generation_config(read_json(file), str(file))


def checked_generation_config(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`config`, less its entries of None. origin: the file it comes from, for errors."""
    given = {name: value for name, value in config.items() if value is not None}
    faults = [
        f"{name} is {shown(given[name])}, expected {expected}"
        for name, (is_usable, expected) in _READ.items()
        if name in given and not is_usable(given[name])
    ]
    if faults:
        raise CheckpointError(f"{origin} cannot be used: {'; '.join(faults)}")
    return given
