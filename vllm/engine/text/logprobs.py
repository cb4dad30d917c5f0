"""Log-probabilities with the texts of their tokens, position by position.

A token's text is what it adds to the text of the tokens before it: an incomplete character adds nothing, and its last
part adds all of it. So the texts of an output's tokens join to the output, but for special tokens, whose text is their
name whether or not the output has them, and for a character that is incomplete at the end. Each candidate of a position
is read behind the same tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from vllm.core.contract import TokenLogprobs
from vllm.engine.text.detokenizer import IncrementalDecoder, incremental_decoder, output_decoder
from vllm.engine.text.tokenizer import Tokenizer
from vllm.logprobs import FlatLogprobs, Logprob, LogprobsOnePosition, PromptLogprobs, SampleLogprobs
from vllm.sampling_params import SamplingParams


class TokenReader:
    """The texts of tokens that follow one another; None for each without a tokenizer, or with detokenize=False."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, *, of_prompt: bool = False) -> None:
        self._tokenizer = tokenizer if params.detokenize else None
        self._skipped_ids: frozenset[int] = frozenset()
        self._decoder: IncrementalDecoder | None = None
        if self._tokenizer is not None and of_prompt:
            self._decoder = incremental_decoder(self._tokenizer)
        elif self._tokenizer is not None:
            self._skipped_ids, self._decoder = output_decoder(self._tokenizer, params)

    def text(self, token_id: int) -> str | None:
        """That of a candidate for the next token."""
        if self._decoder is None or self._tokenizer is None:
            return None
        if token_id in self._skipped_ids:
            return self._tokenizer.token_text(token_id)
        return self._decoder.peek(token_id)

    def advance(self, token_id: int) -> None:
        """The next token is this one."""
        if self._decoder is not None and token_id not in self._skipped_ids:
            self._decoder.push(token_id)


class LogprobsBuilder:
    """Those of one output, as they come. num_ranked: of each position's most likely tokens, how many have a rank; those
    beyond were asked for by name. -1: all."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, num_ranked: int) -> None:
        self._reader = TokenReader(tokenizer, params)
        self._is_flat = params.flat_logprobs
        self._num_ranked = num_ranked
        self.logprobs = self._new_list()
        self.cumulative_logprob = 0.0

    def add(self, entries: Sequence[TokenLogprobs]) -> None:
        for entry in entries:
            self.logprobs.append(position(entry, self._num_ranked, self._reader))
            self.cumulative_logprob += entry.logprob

    def take(self) -> SampleLogprobs:
        """Those that were added since this was last called."""
        taken, self.logprobs = self.logprobs, self._new_list()
        return taken

    def _new_list(self) -> SampleLogprobs:
        return FlatLogprobs() if self._is_flat else []


class PromptLogprobsBuilder:
    """Those of one prompt. Its first token has none."""

    def __init__(
        self, tokenizer: Tokenizer | None, params: SamplingParams, num_ranked: int, first_token_id: int
    ) -> None:
        self._reader = TokenReader(tokenizer, params, of_prompt=True)
        self._reader.advance(first_token_id)
        self._num_ranked = num_ranked
        self.logprobs: PromptLogprobs = FlatLogprobs() if params.flat_logprobs else []
        self.logprobs.append(None)

    def add(self, entries: Sequence[TokenLogprobs]) -> None:
        for entry in entries:
            self.logprobs.append(position(entry, self._num_ranked, self._reader))


def position(entry: TokenLogprobs, num_ranked: int, reader: TokenReader) -> LogprobsOnePosition:
    """The sampled or given token, then the most likely ones. The reader goes on to the next position."""
    found = {entry.token_id: Logprob(entry.logprob, entry.rank, reader.text(entry.token_id))}
    for index, (token_id, logprob) in enumerate(entry.top):
        if token_id not in found:
            rank = index + 1 if num_ranked == -1 or index < num_ranked else None
            found[token_id] = Logprob(logprob, rank, reader.text(token_id))
    reader.advance(entry.token_id)
    return found


def add_texts(
    positions: Sequence[LogprobsOnePosition],
    token_ids: Sequence[int],
    tokenizer: Tokenizer | None,
    params: SamplingParams,
) -> list[LogprobsOnePosition]:
    """Copies of positions that have no texts yet; token_ids: the token at each."""
    reader, found = TokenReader(tokenizer, params), []
    for token_id, at_position in zip(token_ids, positions, strict=True):
        found.append({i: Logprob(one.logprob, one.rank, reader.text(i)) for i, one in at_position.items()})
        reader.advance(token_id)
    return found


def prompt_offsets(tokenizer: Any, text: str, token_ids: Sequence[int], add_special_tokens: bool | None) -> list[int]:
    """Where in a prompt's text each of its tokens begins, ascending.

    A token that the text lacks, such as an added BOS, begins where the next one does.
    add_special_tokens: how the text was encoded; None: the text is what the tokens decode to.
    """
    if not isinstance(tokenizer, Tokenizer):
        pieces = [str(tokenizer.decode([token_id])) for token_id in token_ids]
        return _tiled(text, pieces)[0]
    decoder = incremental_decoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in token_ids]
    offsets, covers = _tiled(text, pieces)
    if covers or add_special_tokens is None:
        return offsets
    spans = tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).offsets
    return list(itertools.accumulate((start for start, _ in spans), max)) if len(spans) == len(pieces) else offsets


def _tiled(text: str, pieces: Sequence[str]) -> tuple[list[int], bool]:
    """Where each piece begins, one behind the other, and whether they cover the text.

    A piece that the text lacks takes no room in it: an added special token, or one of a text that was normalised. The
    first one may have a space that the text has not.
    """
    offsets, position = [], 0
    for piece in pieces:
        offsets.append(position)
        if position == 0 and not text.startswith(piece):
            piece = piece.removeprefix(" ")
        if text.startswith(piece, position):
            position += len(piece)
    return offsets, position == len(text)
