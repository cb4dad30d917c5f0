"""Steps on their way through the executor: submitted in order, taken in order."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from vllm.core.contract import Executor, ModelRunnerOutput, SchedulerOutput


class DoneStep(NamedTuple):
    """seconds: what the step took in the executor."""

    scheduled: SchedulerOutput
    result: ModelRunnerOutput
    seconds: float


class StepLane:
    """Up to `depth` steps.

    With one, it runs when it is taken, in the caller's thread. With more, they run in a thread of the lane, and the
    caller schedules the next one and tells what came of the last one meanwhile.
    """

    def __init__(self, executor: Executor, depth: int) -> None:
        self.depth = depth
        self._executor = executor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device") if depth > 1 else None
        self._steps: deque[tuple[SchedulerOutput, Future[tuple[ModelRunnerOutput, float]] | None]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def submit(self, scheduled: SchedulerOutput) -> None:
        self._steps.append((scheduled, self._thread.submit(self._execute, scheduled) if self._thread else None))

    def take(self) -> DoneStep:
        """The oldest step, once it has run. Raises what the executor raised."""
        scheduled, future = self._steps.popleft()
        return DoneStep(scheduled, *(future.result() if future else self._execute(scheduled)))

    def close(self) -> None:
        """Wait for the step that runs; what has not begun is dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._steps.clear()

    def _execute(self, scheduled: SchedulerOutput) -> tuple[ModelRunnerOutput, float]:
        started = time.monotonic()
        result = self._executor.execute(scheduled)
        return result, time.monotonic() - started
