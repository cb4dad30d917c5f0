"""Rows that are kept busy: decoding at a load, with engines side by side.

A batch that starts and ends together measures its slowest row. Under load another request takes the place of each that
ends, so what counts is what all rows bring. The first requests are of different lengths, so that rows do not end in
step with each other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine_runs import sampling_params


@dataclass(frozen=True)
class SteadyRate:
    """Of steps in which every row decoded. row_steps: of all rows together. texts: tokens of each request, in order."""

    seconds: float
    tokens: int
    row_steps: int
    texts: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_a_step(self) -> float:
        return self.tokens / self.row_steps


class SteadyRun:
    """`num_requests` of the prompts, in turn, over `rows` rows of an engine that is driven step by step.

    output_len: tokens of each; the first `rows` of them get less, each another share. name: unlike that of any other
    run under way.
    """

    def __init__(
        self,
        llm: Any,
        prompts: list[list[int]],
        rows: int,
        num_requests: int,
        output_len: int,
        name: str,
        temperature: float = 0.0,
    ) -> None:
        self._engine = llm.llm_engine
        self._rows, self._output_len, self._temperature, self._name = rows, output_len, temperature, name
        self._waiting = list(itertools.islice(itertools.cycle(prompts), num_requests))[::-1]
        self._texts: dict[str, list[int]] = {}
        self._running: set[str] = set()
        self._seconds, self._tokens, self._row_steps = 0.0, 0, 0
        self._fill()

    @property
    def is_over(self) -> bool:
        """Whether a row is idle, since nothing waits any more."""
        return len(self._running) < self._rows

    def step(self) -> None:
        counts = all(self._texts[req_id] for req_id in self._running) and not self.is_over
        start = time.perf_counter()
        outputs = self._engine.step()
        seconds = time.perf_counter() - start
        for output in outputs:
            self._texts[output.request_id] += output.outputs[0].token_ids
            if output.finished:
                self._running.remove(output.request_id)
        if counts:
            self._seconds += seconds
            self._tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            self._row_steps += len(outputs)
        self._fill()

    def finish(self) -> SteadyRate:
        """Let the rest run to its end, uncounted."""
        while self._running:
            self.step()
        return SteadyRate(self._seconds, self._tokens, self._row_steps, list(self._texts.values()))

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._rows:
            number = len(self._texts)
            req_id = f"{self._name}-{number}"
            share = min((number + 1) / self._rows, 1.0)
            params = sampling_params(max(int(share * self._output_len), 2), self._temperature)
            self._texts[req_id] = []
            self._running.add(req_id)
            self._engine.add_request(req_id, {"prompt_token_ids": self._waiting.pop()}, params)


def run_side_by_side(runs: Sequence[SteadyRun], slice_seconds: float = 0.02) -> list[SteadyRate]:
    """Runs of different engines, in turns of a few steps, so that all meet the same machine.

    Each turn begins with another run.
    """
    for turn in itertools.count():
        under_way = [run for run in runs if not run.is_over]
        if not under_way:
            break
        for i in range(len(under_way)):
            run = under_way[(i + turn) % len(under_way)]
            until = time.perf_counter() + slice_seconds
            while not run.is_over and time.perf_counter() < until:
                run.step()
    return [run.finish() for run in runs]
