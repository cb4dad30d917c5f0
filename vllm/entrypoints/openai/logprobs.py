"""Log-probabilities in the two shapes of the OpenAI API, and in that of `prompt_logprobs`.

The engine gives, for each token, `{token_id: Logprob}` with the sampled token among them, most likely first. JSON
has no infinity: a log-probability below -9999 is reported as -9999. Results are plain dicts, cheap to serialise in
a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LOWEST = -9999.0


class LogprobsFormatter:
    """as_ids: name tokens `token_id:<id>` instead of by their text."""

    def __init__(self, tokenizer: Any, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def completion(
        self,
        token_ids: Sequence[int],
        logprobs: Iterable[Mapping[int, Any] | None],
        offset: int = 0,
    ) -> dict[str, Any]:
        """`CompletionLogProbs`. offset: where the first token starts in the text."""
        tokens, token_logprobs, top_logprobs, offsets = [], [], [], []
        for token_id, at_position in zip(token_ids, logprobs, strict=True):
            entry = at_position.get(token_id) if at_position else None
            text = self._name(token_id, entry)
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
            token_logprobs.append(_clipped(entry.logprob) if entry else None)
            top_logprobs.append(self._top_by_text(at_position) if at_position else None)
        return {
            "text_offset": offsets,
            "token_logprobs": token_logprobs,
            "tokens": tokens,
            "top_logprobs": top_logprobs,
        }

    def chat(
        self, token_ids: Sequence[int], logprobs: Iterable[Mapping[int, Any] | None], num_top: int
    ) -> dict[str, Any]:
        """`ChatLogprobs`."""
        return {"content": [self._chat_token(*pair, num_top) for pair in zip(token_ids, logprobs, strict=True)]}

    def prompt(self, logprobs: Iterable[Mapping[int, Any] | None]) -> Any:
        """`PromptLogprobs`."""
        return [_prompt_position(at_position) if at_position else None for at_position in logprobs]

    def _chat_token(self, token_id: int, at_position: Mapping[int, Any] | None, num_top: int) -> dict[str, Any]:
        if not at_position:
            return {**self._named(token_id, None), "top_logprobs": []}
        top = [self._named(*item) for item in _most_likely(at_position, num_top)]
        return {**self._named(token_id, at_position.get(token_id)), "top_logprobs": top}

    def _named(self, token_id: int, entry: Any) -> dict[str, Any]:
        text = self._name(token_id, entry)
        logprob = _clipped(entry.logprob) if entry else LOWEST
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    def _top_by_text(self, at_position: Mapping[int, Any]) -> dict[str, float]:
        """The most likely tokens, and the sampled one if it is not among them."""
        return {self._name(token_id, entry): _clipped(entry.logprob) for token_id, entry in at_position.items()}

    def _name(self, token_id: int, entry: Any) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        if entry is not None and entry.decoded_token is not None:
            return str(entry.decoded_token)
        return str(self._tokenizer.decode([token_id])) if self._tokenizer is not None else f"token_id:{token_id}"


def _most_likely(at_position: Mapping[int, Any], num_top: int) -> list[tuple[int, Any]]:
    return sorted(at_position.items(), key=lambda item: -item[1].logprob)[:num_top]


def _prompt_position(at_position: Mapping[int, Any]) -> dict[int, dict[str, Any]]:
    return {
        token_id: {"logprob": _clipped(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}
        for token_id, entry in at_position.items()
    }


def _clipped(logprob: float) -> float:
    return max(logprob, LOWEST)
