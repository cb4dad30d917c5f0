"""Token ids to text, one token at a time, never breaking a character.

A decoder that is a table of bytes for each token (byte-level BPE, sentencepiece with byte fallback) is run as one: a
look-up and an incremental UTF-8 decoder, O(1) a token. Any other goes through the tokenizer, on a window of the last
few tokens.

The text of an output is the concatenation of its pieces by construction, so a stream and a plain answer cannot differ.
As an output follows a prompt, the space that sentencepiece strips at the beginning of a text is kept.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from vllm.engine.tokenizer import Tokenizer
from vllm.sampling_params import SamplingParams

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MAX_WINDOW = 32


class IncrementalDecoder(Protocol):
    def push(self, token_id: int) -> str:
        """The text that a token completes; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What was held back, at the end."""
        ...


class ByteTable(dict[int, bytes]):
    """Token id -> the bytes it stands for, filled as tokens are met."""

    def __init__(self, tokenizer: Tokenizer, steps: list[dict[str, Any]]) -> None:
        super().__init__()
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


class _ByteDecoder:
    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._table[token_id])

    def flush(self) -> str:
        return self._decode(b"", True)


class _WindowDecoder:
    """Decodes the last few tokens with and without the new one; an incomplete character at the end is held back."""

    def __init__(self, tokenizer: Tokenizer, spaces_between_special_tokens: bool) -> None:
        self._decode = tokenizer.backend_tokenizer.decode
        self._special_ids = frozenset() if spaces_between_special_tokens else tokenizer.special_ids
        self._id_to_token = tokenizer.backend_tokenizer.id_to_token
        self._ids: list[int] = []
        self._num_read = 0

    def push(self, token_id: int) -> str:
        if token_id in self._special_ids and self._ids and self._ids[-1] in self._special_ids:
            self._ids, self._num_read = [token_id], 1
            return self._id_to_token(token_id) or ""
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._num_read < _MAX_WINDOW:
            return ""
        self._ids = self._ids[self._num_read :]
        self._num_read = len(self._ids)
        return text

    def flush(self) -> str:
        return self._new_text() if self._num_read < len(self._ids) else ""

    def _new_text(self) -> str:
        before = self._decode(self._ids[: self._num_read], skip_special_tokens=False)
        return self._decode(self._ids, skip_special_tokens=False)[len(before) :]


_TABLE_STEPS = frozenset({"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
_tables: WeakKeyDictionary[Tokenizer, ByteTable | None] = WeakKeyDictionary()


def _byte_table(tokenizer: Tokenizer) -> ByteTable | None:
    if tokenizer not in _tables:
        _tables[tokenizer] = _build_table(tokenizer)
    return _tables[tokenizer]


def _build_table(tokenizer: Tokenizer) -> ByteTable | None:
    """None for a decoder whose text of a token depends on its neighbours."""
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


def incremental_decoder(tokenizer: Tokenizer, *, spaces_between_special_tokens: bool = True) -> IncrementalDecoder:
    table = _byte_table(tokenizer)
    if table is not None:
        return _ByteDecoder(table)
    return _WindowDecoder(tokenizer, spaces_between_special_tokens)


class Detokenizer:
    """The text of one output, as it grows; read it by `take` (what is new) or by `text` (all of it), not by both.

    While the output runs, the last len(longest stop string) - 1 characters are held back, since they may be the
    beginning of a stop string that will be cut off.

    stop_reason: the stop string that was found.
    """

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams) -> None:
        """Without a tokenizer, or with detokenize=False, the text stays empty."""
        self.stop_reason: str | None = None
        self._decoder: IncrementalDecoder | None = None
        self._stop: list[str] = list(params.stop or ())
        self._include_stop = params.include_stop_str_in_output
        self._window_len = max((len(stop) - 1 for stop in self._stop), default=0)
        self._window = ""
        self._pieces: list[str] = []
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._skipped_ids: frozenset[int] = frozenset()
        if tokenizer is not None and params.detokenize:
            self._skipped_ids = tokenizer.special_ids if params.skip_special_tokens else frozenset()
            spaces = params.skip_special_tokens or params.spaces_between_special_tokens
            self._decoder = incremental_decoder(tokenizer, spaces_between_special_tokens=spaces)

    def update(self, token_ids: Sequence[int], *, finished: bool = False, ends_in_stop_token: bool = False) -> int:
        """Take in new tokens, up to the one that completes a stop string; returns how many were taken.

        finished: these are the last. ends_in_stop_token: the last one's text is not part of the output, unless the
        request wants it.
        """
        if self._decoder is None:
            return len(token_ids)
        num_texts = len(token_ids) - (ends_in_stop_token and not self._include_stop)
        for taken, token_id in enumerate(token_ids[:num_texts], 1):
            self._num_tokens += 1
            text = "" if token_id in self._skipped_ids else self._decoder.push(token_id)
            if text and self._add(text):
                return taken
        if finished:
            text = self._decoder.flush()
            if not (text and self._add(text)) and not self._include_stop:
                self._pieces.append(self._window)
        return len(token_ids)

    def take(self) -> str:
        """The text that came since this was last called."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def _add(self, text: str) -> bool:
        """Append text, cut at the stop string that it completes first; returns whether there is one."""
        if not self._stop:
            self._pieces.append(text)
            return False
        window = self._window
        joined = window + text
        if (match := self._find_stop(joined, len(window))) is not None:
            end, start, self.stop_reason = match
            self._pieces.append(joined[len(window) : end] if self._include_stop else joined[:start])
            return True
        cut = max(len(joined) - self._window_len, 0)
        self._window = joined[cut:]
        self._pieces.append(text if self._include_stop else joined[:cut])
        return False

    def _find_stop(self, text: str, num_known: int) -> tuple[int, int, str] | None:
        """(end, start, stop string) of the match that is complete first, among those that end beyond num_known."""
        if self._num_tokens <= self._min_tokens:
            return None
        starts = ((stop, text.find(stop, max(num_known - len(stop) + 1, 0))) for stop in self._stop)
        return min(((start + len(stop), start, stop) for stop, start in starts if start >= 0), default=None)
