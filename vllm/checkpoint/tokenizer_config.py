"""tokenizer_config.json and special_tokens_map.json, checked: tokens with a name, added tokens, the longest text.

Where the two name different tokens, the map is what counts, unless tokenizer_config.json lists the added tokens
(`added_tokens_decoder`): then it was written by a later version, as transformers reads them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from vllm.checkpoint.config_checks import is_number, shown
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import read_json
from vllm.logger import init_logger

logger = init_logger(__name__)

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_DECODER = "added_tokens_decoder"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_UNLIMITED = 10**18
"""What transformers writes for no limit is greater."""


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """entries: of tokenizer_config.json; empty if there is none. special_tokens: texts, by the names in NAMED_TOKENS.

    added_tokens: in the order of their ids. model_max_length: tokens, None if there is no limit.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    special_tokens: dict[str, str] = field(default_factory=dict)
    added_tokens: list[AddedToken] = field(default_factory=list)
    model_max_length: int | None = None


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """Of a directory, where both files may be missing. Raises CheckpointError that names the file and the entry."""
    entries, by_map = read_json(directory / _CONFIG), read_json(directory / _MAP)
    special_tokens = _named_tokens(entries, directory / _CONFIG)
    mapped = _named_tokens(by_map, directory / _MAP)
    counts = special_tokens if _DECODER in entries else mapped
    differing = [name for name in special_tokens.keys() & mapped.keys() if special_tokens[name] != mapped[name]]
    for name in sorted(differing):
        said = f"{special_tokens[name]!r} in {_CONFIG} and {mapped[name]!r} in {_MAP}"
        logger.warning("%s: %s is %s; %r is taken", directory, name, said, counts[name])
    return TokenizerConfig(
        entries,
        {**mapped, **special_tokens, **counts},
        list(_added_tokens(entries.get(_DECODER), directory / _CONFIG)),
        _limit(entries.get("model_max_length"), directory / _CONFIG),
    )


def _named_tokens(entries: Mapping[str, Any], file: Path) -> dict[str, str]:
    """A token is given by its text, or as an object that holds it as `content`."""
    found = {}
    for name in NAMED_TOKENS:
        given = entries.get(name)
        text = given.get("content") if isinstance(given, Mapping) else given
        if text is not None and not isinstance(text, str):
            raise CheckpointError(f"{file} cannot be used: {name} is {shown(given)}, expected a token's text")
        if text:
            found[name] = text
    return found


def _added_tokens(decoder: Any, file: Path) -> Iterator[AddedToken]:
    if decoder is None:
        return
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{file} cannot be used: {_DECODER} is {shown(decoder)}, expected tokens by id")
    for index, entry in decoder.items():
        text = entry.get("content") if isinstance(entry, Mapping) else None
        if not (index.isascii() and index.isdigit() and len(index) < 12 and isinstance(text, str) and text):
            said = f"{_DECODER} has {shown(entry)} for {shown(index)}"
            raise CheckpointError(f"{file} cannot be used: {said}, expected a token with its content by its id")
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        yield AddedToken(entry["content"], **{flag: bool(entry.get(flag)) for flag in _FLAGS})


def _limit(length: Any, file: Path) -> int | None:
    if length is None:
        return None
    if not is_number(length) or length < 1:
        raise CheckpointError(f"{file} cannot be used: model_max_length is {shown(length)}, expected a positive number")
    return int(length) if length < _UNLIMITED else None
