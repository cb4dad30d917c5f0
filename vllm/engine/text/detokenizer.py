"""Token ids to text, one token at a time, never breaking a character.

Where each token has bytes of its own (`byte_table.py`), a token costs a look-up and an incremental UTF-8 decoder. Any
other tokenizer decodes a window of the last few tokens.

The text of an output is the concatenation of its pieces by construction, so a stream and a plain answer cannot differ.
As an output follows a prompt, the space that sentencepiece strips at the beginning of a text is kept.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

from vllm.engine.text.byte_table import ByteTable, byte_table
from vllm.engine.text.tokenizer import Tokenizer
from vllm.sampling_params import SamplingParams

_REPLACEMENT = "\ufffd"
_MAX_WINDOW = 32


class IncrementalDecoder(Protocol):
    def push(self, token_id: int) -> str:
        """The text that a token completes; "" while a character is incomplete."""
        ...

    def peek(self, token_id: int) -> str:
        """What `push` would return, without taking the token in."""
        ...

    def flush(self) -> str:
        """What was held back, at the end."""
        ...


class _ByteDecoder:
    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._incomplete = b""

    def peek(self, token_id: int) -> str:
        if not self._incomplete:
            return self._table.texts[token_id]
        return utf_8_decode(self._incomplete + self._table[token_id], "replace")[0]

    def push(self, token_id: int) -> str:
        data = self._incomplete + self._table[token_id]
        text, num_read = utf_8_decode(data, "replace")
        self._incomplete = data[num_read:]
        return text

    def flush(self) -> str:
        text, self._incomplete = self._incomplete.decode("utf-8", "replace"), b""
        return text


class _WindowDecoder:
    """Decodes the last few tokens with and without the new one; an incomplete character at the end is held back."""

    def __init__(self, tokenizer: Tokenizer, spaces_between_special_tokens: bool) -> None:
        self._decode = tokenizer.backend_tokenizer.decode
        self._special_ids = frozenset() if spaces_between_special_tokens else tokenizer.special_ids
        self._id_to_token = tokenizer.backend_tokenizer.id_to_token
        self._ids: list[int] = []
        self._num_read = 0

    def peek(self, token_id: int) -> str:
        return self._following(token_id)[0]

    def push(self, token_id: int) -> str:
        text, self._ids, self._num_read = self._following(token_id)
        return text

    def flush(self) -> str:
        return self._new_text(self._ids) if self._num_read < len(self._ids) else ""

    def _following(self, token_id: int) -> tuple[str, list[int], int]:
        """The text that a token completes, the window with it, and how many of its tokens are read then."""
        if token_id in self._special_ids and self._ids and self._ids[-1] in self._special_ids:
            return self._id_to_token(token_id) or "", [token_id], 1
        ids = [*self._ids, token_id]
        text = self._new_text(ids)
        if text.endswith(_REPLACEMENT) and len(ids) - self._num_read < _MAX_WINDOW:
            return "", ids, self._num_read
        ids = ids[self._num_read :]
        return text, ids, len(ids)

    def _new_text(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._num_read], skip_special_tokens=False)
        return str(self._decode(ids, skip_special_tokens=False)[len(before) :])


def incremental_decoder(tokenizer: Tokenizer, *, spaces_between_special_tokens: bool = True) -> IncrementalDecoder:
    table = byte_table(tokenizer)
    if table is not None:
        return _ByteDecoder(table)
    return _WindowDecoder(tokenizer, spaces_between_special_tokens)


def output_decoder(tokenizer: Tokenizer, params: SamplingParams) -> tuple[frozenset[int], IncrementalDecoder]:
    """The tokens that a request's output leaves out, and what decodes the others."""
    spaces = params.skip_special_tokens or params.spaces_between_special_tokens
    decoder = incremental_decoder(tokenizer, spaces_between_special_tokens=spaces)
    return tokenizer.special_ids if params.skip_special_tokens else frozenset(), decoder


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
            self._skipped_ids, self._decoder = output_decoder(tokenizer, params)

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
