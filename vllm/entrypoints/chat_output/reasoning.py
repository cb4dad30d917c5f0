"""Where an output's reasoning is, by tokens: told to the engine, whose constraints begin behind it, and counted.

A reasoning parser has markers around the reasoning. Where a tokenizer has one token for each, an output that must have
a form may think first. Where it has not (granite's markers are sentences), the form is that of the whole output, and no
reasoning is looked for in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.entrypoints.chat_output.marks import token_of
from vllm.entrypoints.chat_output.parsers import REASONING_PARSERS
from vllm.entrypoints.chat_output.parsers.reasoning import Preceding, begun_by
from vllm.sampling_params import ReasoningGate


class ReasoningMarkers:
    """Those of the server's reasoning parser. tokenizer: None where there is none."""

    def __init__(self, parser_name: str | None, tokenizer: Any, vocab_size: int) -> None:
        parser: Any = None if parser_name is None else REASONING_PARSERS[parser_name]()
        self._open = getattr(parser, "open", None)
        self._close = getattr(parser, "close", None)
        self._tokenizer = tokenizer
        self._begun = getattr(parser, "begun", False)
        self._open_id = token_of(self._open, tokenizer, vocab_size)
        self._close_id = token_of(self._close, tokenizer, vocab_size)

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self._open, self._close) if mark is not None)

    @property
    def are_tokens(self) -> bool:
        return self._open_id is not None and self._close_id is not None

    def gate(self, preceding: Preceding) -> ReasoningGate | None:
        """For a constraint; None where it holds from the first token on, since the reasoning has ended before it."""
        if not self.are_tokens or self._close is None:
            return None
        begun = begun_by(preceding, self._open, self._close)
        if begun is False:
            return None
        return ReasoningGate(self._close, self._open_id, begun=self._begun or begun is True)

    def counter(self, preceding: Preceding) -> ReasoningCounter:
        begun = begun_by(preceding, self._open, self._close)
        state = "inside" if begun else "undecided" if begun is None else "after"
        return ReasoningCounter(self, state)

    def count(self, text: str) -> int:
        """Tokens of a reasoning between markers that are no tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False)) if text and self._tokenizer else 0

    def _decide(self, token_id: int) -> str:
        """What an output's first token makes of it."""
        if token_id == self._open_id:
            return "inside"
        if self._tokenizer.decode([token_id]).isspace():
            return "undecided"
        return "inside" if self._begun else "after"


class ReasoningCounter:
    """Counts the tokens of one output's reasoning, without its markers."""

    def __init__(self, markers: ReasoningMarkers, state: str) -> None:
        self._markers = markers
        self._state = state
        self._texts: list[str] = []
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        return self._num_tokens if self._markers.are_tokens else self._markers.count("".join(self._texts))

    def feed(self, token_ids: Iterable[int], reasoning: str) -> None:
        """reasoning: the text that the parser set apart of these tokens."""
        if not self._markers.are_tokens:
            self._texts.append(reasoning)
            return
        for token_id in token_ids:
            self._take(token_id)

    def _take(self, token_id: int) -> None:
        markers = self._markers
        if self._state == "undecided":
            self._state = markers._decide(token_id)
        if self._state == "inside":
            if token_id == markers._close_id:
                self._state = "after"
            else:
                self._num_tokens += token_id != markers._open_id
