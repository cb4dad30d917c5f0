"""Where an output with a constraint still thinks: the constraint begins when the reasoning has ended.

    undecided   the first token either opens the reasoning or begins the constrained output
    inside      anything may be written, until the closing marker
    open        the constraint holds

The closing marker is looked for in the bytes of the tokens, so it does not matter which tokens wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vllm.sampling_params import ReasoningGate


class Passed(NamedTuple):
    """What of some tokens is behind the gate. overhang: bytes of the token that completed the marker, after it."""

    overhang: bytes
    token_ids: list[int]


class Gate:
    """Of one request. decode: the bytes that tokens stand for."""

    def __init__(self, gate: ReasoningGate, decode: Callable[[list[int]], bytes]) -> None:
        self.open_id = gate.open_id
        self.is_open = False
        self.is_inside = gate.begun
        self._close = gate.close.encode()
        self._decode = decode
        self._tail = b""

    def take(self, token_ids: list[int]) -> Passed:
        """Go on by what was sampled."""
        for i, token_id in enumerate(token_ids):
            if self.is_open:
                return Passed(b"", token_ids[i:])
            if not self.is_inside:
                if token_id != self.open_id:
                    self.is_open = True
                    return Passed(b"", token_ids[i:])
                self.is_inside = True
            elif (overhang := self._end(token_id)) is not None:
                self.is_open, self.is_inside = True, False
                return Passed(overhang, token_ids[i + 1 :])
        return Passed(b"", [])

    def _end(self, token_id: int) -> bytes | None:
        """What follows the closing marker, if this token completes it."""
        text = self._tail + self._decode([token_id])
        _, marker, after = text.partition(self._close)
        if marker:
            return after
        self._tail = text[-(len(self._close) - 1) :] if len(self._close) > 1 else b""
        return None
