"""Log-probabilities in the two shapes of the OpenAI API, and in that of `prompt_logprobs`.

The engine gives, for each token, `{token_id: Logprob}` with the sampled token first, and texts by the rules of
`vllm.engine.text.logprobs`. Every route, streamed or not, shows them by these rules:

bytes    the token's own, so that those of an output join to its text. Empty for a token that the text lacks: a special
         token that is left out, the stop token. Where a stop string is cut off, the bytes go on to its end.
name     the token's text; `bytes:\\xf0\\x9f` if its bytes are no whole characters; `token_id:7` if it has no bytes, if
         names are asked for by id, or if a likelier candidate of the same position has the name already. No two
         candidates of a position share a name, and the sampled token's is the one that it has in `tokens`.
offset   where in the choice's text, the echoed prompt included, the token's text begins.

JSON has no infinity: a log-probability below -9999 is reported as -9999.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.engine.text.byte_table import byte_table
from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.openai.protocol.logprobs import (
    ChatLogprobs,
    CompletionLogProbs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput

LOWEST = -9999.0
_BY_ID, _BY_BYTES = "token_id:", "bytes:"

Position = Mapping[int, Logprob]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is shown before its output. offsets: where each token begins in the text."""

    text: str
    token_ids: list[int]
    offsets: list[int]


class TokenNames:
    """The bytes and names of a tokenizer's tokens. tokenizer: None where there is none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = byte_table(tokenizer) if isinstance(tokenizer, Tokenizer) else None
        self._names: dict[int, str] = {}
        self.special_ids: frozenset[int] = frozenset() if tokenizer is None else tokenizer.special_ids

    def data(self, token_id: int, text: str | None) -> bytes | None:
        """A token's own bytes. text: what it adds to the text before it, which are its bytes where it has no others."""
        if self._table is not None:
            return self._table[token_id]
        return None if text is None else text.encode("utf-8", "replace")

    def name(self, token_id: int) -> str:
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = self._name(token_id)
        return name

    def _name(self, token_id: int) -> str:
        if self._tokenizer is None:
            return by_id(token_id)
        data = self._tokenizer.decode([token_id]).encode() if self._table is None else self._table[token_id]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return _BY_BYTES + "".join(f"\\x{byte:02x}" for byte in data)
        return by_id(token_id) if not text or text.startswith((_BY_ID, _BY_BYTES)) else text


def by_id(token_id: int) -> str:
    return f"{_BY_ID}{token_id}"


class LogprobsFormatter:
    """Of one choice of an answer; fed all of it, or piece by piece.

    as_ids: tokens are named by their ids. skips_special: special tokens are left out of the text. has_stop_token: the
    text has the token that ended it.
    """

    def __init__(self, names: TokenNames, *, as_ids: bool, skips_special: bool, has_stop_token: bool) -> None:
        self._names = names
        self._as_ids = as_ids
        self._left_out = names.special_ids if skips_special else frozenset()
        self._has_stop_token = has_stop_token
        self._offset = 0

    def chat(self, completion: CompletionOutput, num_top: int) -> ChatLogprobs:
        """Of a piece of the output."""
        return {"content": [self._chat_token(*at, num_top) for at in self._tokens(completion)]}

    def echo(self, echo: Echo, logprobs: Sequence[Position | None] | None) -> CompletionLogProbs:
        """Of the prompt before the output. logprobs: None where they were not computed."""
        shown = _no_logprobs()
        for i, token_id in enumerate(echo.token_ids):
            self._add(shown, token_id, logprobs[i] if logprobs else None, echo.offsets[i])
        self._offset = len(echo.text)
        return shown

    def completion(self, completion: CompletionOutput) -> CompletionLogProbs:
        """Of a piece of the output."""
        shown = _no_logprobs()
        for token_id, position, is_shown in self._tokens(completion):
            self._add(shown, token_id, position, self._offset)
            self._offset += len(position[token_id].decoded_token or "") if is_shown else 0
        return shown

    def _tokens(self, completion: CompletionOutput) -> Iterator[tuple[int, Position, bool]]:
        """Each token, its position, and whether the text has it."""
        token_ids: Sequence[int] = completion.token_ids
        ends_in_stop_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
        last = len(token_ids) - 1 if ends_in_stop_token and not self._has_stop_token else -1
        positions: Iterable[Any] = completion.logprobs or ()
        for i, (token_id, position) in enumerate(zip(token_ids, positions, strict=True)):
            yield token_id, position, i != last and token_id not in self._left_out

    def _add(self, shown: CompletionLogProbs, token_id: int, position: Position | None, offset: int) -> None:
        shown["text_offset"].append(offset)
        shown["tokens"].append(self._name(token_id))
        shown["token_logprobs"].append(_clipped(position[token_id].logprob) if position else None)
        top = {name: _clipped(one.logprob) for name, _, one in self._named(token_id, position)} if position else None
        shown["top_logprobs"].append(top)

    def _chat_token(self, token_id: int, position: Position, is_shown: bool, num_top: int) -> TokenLogprob:
        likely = sorted(self._named(token_id, position), key=lambda named: -named[2].logprob)[:num_top]
        top = [self._entry(*named, is_shown if named[1] == token_id else True) for named in likely]
        return {**self._entry(self._name(token_id), token_id, position[token_id], is_shown), "top_logprobs": top}

    def _entry(self, name: str, token_id: int, entry: Logprob, is_shown: bool) -> TopLogprob:
        is_shown = is_shown and token_id not in self._left_out
        data = self._names.data(token_id, entry.decoded_token) if is_shown else b""
        return {"token": name, "logprob": _clipped(entry.logprob), "bytes": None if data is None else list(data)}

    def _named(self, token_id: int, position: Position) -> Iterator[tuple[str, int, Logprob]]:
        """The candidates of a position with their names, the sampled token first."""
        taken = {self._name(token_id)}
        yield self._name(token_id), token_id, position[token_id]
        for candidate, entry in position.items():
            if candidate != token_id:
                name = self._name(candidate)
                name = by_id(candidate) if name in taken else name
                taken.add(name)
                yield name, candidate, entry

    def _name(self, token_id: int) -> str:
        return by_id(token_id) if self._as_ids else self._names.name(token_id)


def joined(first: CompletionLogProbs | None, second: CompletionLogProbs | None) -> CompletionLogProbs | None:
    """Those of two pieces of one choice, end to end."""
    if first is None or second is None:
        return first or second
    return CompletionLogProbs(**{name: first[name] + second[name] for name in first})  # type: ignore


def prompt_logprobs(logprobs: Sequence[Position | None]) -> PromptLogprobs:
    return [_prompt_position(position) if position else None for position in logprobs]


def _prompt_position(position: Position) -> dict[int, PromptLogprob]:
    return {
        token_id: {"logprob": _clipped(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}
        for token_id, entry in position.items()
    }


def _no_logprobs() -> CompletionLogProbs:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _clipped(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST
