"""The bytes that each token stands for: of byte-level BPE, and of sentencepiece with byte fallback.

A text of such tokenizers is the join of its tokens' bytes. There is no table for others, in which the text of a token
depends on its neighbours.
"""

from __future__ import annotations

import json
import re
from codecs import utf_8_decode
from typing import Any
from weakref import WeakKeyDictionary

from vllm.engine.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ByteTable(dict[int, bytes]):
    """Token id -> the bytes it stands for; empty for an id of no token. Filled as tokens are met.

    texts: token id -> its bytes as text, without an incomplete character at their end.
    """

    def __init__(self, tokenizer: Tokenizer, steps: list[dict[str, Any]]) -> None:
        super().__init__()
        self.texts = _Texts(self)
        self._id_to_token = tokenizer.backend_tokenizer.id_to_token
        self._byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self._replacements = [pair for step in steps if (pair := _replacement(step)) is not None]

    def __missing__(self, token_id: int) -> bytes:
        token = self._id_to_token(token_id)
        data = b"" if token is None else self._bytes_of(token)
        self[token_id] = data
        return data

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            return _byte_level_bytes(token)
        for old, new in self._replacements:
            token = token.replace(old, new)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()


class _Texts(dict[int, str]):
    def __init__(self, table: ByteTable) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, token_id: int) -> str:
        text = self[token_id] = utf_8_decode(self._table[token_id], "replace")[0]
        return text


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace":
        return step["pattern"]["String"], step["content"]
    return None


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE's characters: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


_TABLE_STEPS = frozenset({"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
_tables: WeakKeyDictionary[Tokenizer, ByteTable | None] = WeakKeyDictionary()


def byte_table(tokenizer: Tokenizer) -> ByteTable | None:
    """A tokenizer's table, made once; None if it has none."""
    if tokenizer not in _tables:
        _tables[tokenizer] = _build_table(tokenizer)
    return _tables[tokenizer]


def _build_table(tokenizer: Tokenizer) -> ByteTable | None:
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return None
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    for step in steps:
        if step["type"] not in _TABLE_STEPS or (step["type"] == "Replace" and "String" not in step["pattern"]):
            return None
        if step["type"] == "Strip" and (step["stop"] or step["content"] != " "):
            return None
    if len(steps) > 1 and any(step["type"] == "ByteLevel" for step in steps):
        return None
    return ByteTable(tokenizer, steps)
