"""The loop: schedule, execute, update. One request's fault ends that request."""

from __future__ import annotations

import time
from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Executor
from vllm.core.outputs import EngineCoreOutput
from vllm.core.scheduler import Scheduler
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.logger import init_logger

logger = init_logger(__name__)

CALLS = ("reset_prefix_cache", "executor_stats", "check_integrity")
"""Methods of `EngineCore` that the front may call by name."""


class EngineCore:
    """Owns the scheduler and the executor. Not thread-safe: one thread drives it."""

    def __init__(self, config: VllmConfig, executor: Executor) -> None:
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config)

    def add_request(self, request: EngineCoreRequest) -> EngineCoreOutput | None:
        """Queue a request; for one that can never run, its last output, which says why."""
        try:
            self.scheduler.add_request(request.to_request())
        except Exception as error:
            logger.warning("request %s refused: %s", request.req_id, error)
            return EngineCoreOutput(request.req_id, [], finish_reason="error", error=str(error))
        return None

    def abort(self, req_ids: list[str]) -> list[EngineCoreOutput]:
        """End requests now. Unknown ids are no fault: they may just have finished."""
        outputs = (self.scheduler.finish_request(req_id) for req_id in req_ids)
        return [output for output in outputs if output is not None]

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests()

    def step(self) -> StepOutput:
        """One round. Raises only when the device is lost."""
        scheduled = self.scheduler.schedule()
        started = time.monotonic()
        result = self.executor.execute(scheduled)
        seconds = time.monotonic() - started
        outputs = self.scheduler.update_from_output(scheduled, result)
        num_tokens = scheduled.total_num_scheduled_tokens
        return StepOutput(outputs, self.scheduler.stats(), result.bucket_uses, seconds, num_tokens)

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; running requests keep their blocks."""
        self.scheduler.reset_prefix_cache()
        self.executor.reset_prefix_cache()
        return True

    def executor_stats(self) -> dict[str, Any]:
        return self.executor.stats()

    def check_integrity(self) -> bool:
        """Raises IntegrityError if a row, block or queue entry leaked."""
        self.scheduler.check_integrity()
        return True

    def shutdown(self) -> None:
        self.executor.shutdown()
