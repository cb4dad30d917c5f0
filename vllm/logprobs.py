"""Log-probabilities as users see them: for each position, token id -> `Logprob`, the sampled token first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(slots=True)
class Logprob:
    """logprob: natural log. rank: 1 is the most likely token of the vocabulary. decoded_token: its text, if decoded."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsOnePosition = dict[int, Logprob]


@dataclass
class FlatLogprobs(MutableSequence[LogprobsOnePosition | None]):
    """The same, in a few flat lists: positions are made into dicts only when they are read.

    Position i's entries are token_ids[start_indices[i]:end_indices[i]], and so for the other lists.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, value: LogprobsOnePosition | None) -> None:
        self.start_indices.append(len(self.token_ids))
        for token_id, entry in (value or {}).items():
            self.token_ids.append(token_id)
            self.logprobs.append(entry.logprob)
            self.ranks.append(entry.rank)
            self.decoded_tokens.append(entry.decoded_token)
        self.end_indices.append(len(self.token_ids))

    def extend(self, values: Iterable[LogprobsOnePosition | None]) -> None:
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> LogprobsOnePosition: ...
    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...
    def __getitem__(self, index: int | slice) -> LogprobsOnePosition | FlatLogprobs:
        if isinstance(index, slice):
            part = FlatLogprobs()
            part.extend(self[i] for i in range(*index.indices(len(self))))
            return part
        span = range(self.start_indices[index], self.end_indices[index])
        return {self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i]) for i in span}

    def __iter__(self) -> Iterator[LogprobsOnePosition]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("FlatLogprobs only grow: use append or extend")

    def __delitem__(self, index: Any) -> None:
        raise TypeError("FlatLogprobs only grow: use append or extend")

    def insert(self, index: int, value: LogprobsOnePosition | None) -> None:
        if index != len(self):
            raise TypeError("FlatLogprobs only grow: use append or extend")
        self.append(value)


SampleLogprobs = list[LogprobsOnePosition] | FlatLogprobs
"""One entry an output token."""

PromptLogprobs = list[LogprobsOnePosition | None] | FlatLogprobs
"""One entry a prompt token; the first has none (None, or an empty position)."""
