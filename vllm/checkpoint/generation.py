"""Defaults of sampling that come with a checkpoint: generation_config.json, or the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.checkpoint.config_checks import is_id, is_number, shown
from vllm.sample.table import ROWS

GENERATION_CONFIG = "generation_config.json"


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_ids(value: Any) -> bool:
    return is_id(value) or (isinstance(value, list) and all(is_id(item) for item in value))


_NUMBER, _INTEGER = (is_number, "a number"), (_is_integer, "an integer")
_READ: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: _NUMBER if row.kind == "number" else _INTEGER for name, row in ROWS.items() if row.from_checkpoint},
    "max_new_tokens": _INTEGER,
    **dict.fromkeys(("bos_token_id", "pad_token_id"), (_is_ids, "a token id")),
    "eos_token_id": (_is_ids, "a token id or a list of them"),
}
"""Entries that are read, whether a value can be used, and what it should be. The others are kept as they are."""


def generation_config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with entries that are read, by name. None counts as absent."""
    for name, (is_usable, expected) in _READ.items():
        value = config.get(name)
        if value is not None and not is_usable(value):
            yield f"{name} is {shown(value)}, expected {expected}"
