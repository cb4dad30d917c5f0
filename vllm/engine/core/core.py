"""The loop: schedule, execute, update. One request's fault ends that request.

With `async_scheduling` the next step is scheduled and handed over while one runs, so that the device does not wait for
the host: a step's outputs are told while the next one computes. Not while a request with a grammar runs, whose masks
need the tokens of the step before.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Executor, SchedulerOutput
from vllm.core.outputs import EngineCoreOutput, SchedulerStats
from vllm.core.scheduler import Scheduler
from vllm.engine.core.grammar_stage import Ending, GrammarStage
from vllm.engine.core.lane import StepLane
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.logger import init_logger

logger = init_logger(__name__)

CALLS = ("reset_prefix_cache", "executor_stats", "check_integrity", "wait_for_vocabulary")
"""Methods of `EngineCore` that the front may call by name."""


class EngineCore:
    """Owns the scheduler and the executor. Not thread-safe: one thread drives it."""

    def __init__(self, config: VllmConfig, executor: Executor) -> None:
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config)
        self.scheduler.kv_traffic.learn(executor.stored_prefixes())
        self.grammars = GrammarStage(config.model_config.vocab_size)
        self._lane = StepLane(executor, 2 if config.scheduler_config.async_scheduling else 1)

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        self.grammars.set_tokenizer(tokenizer)

    def wait_for_vocabulary(self) -> None:
        """Until the vocabulary of the grammars' tokenizer is read, which holds the interpreter's lock."""
        self.grammars.wait_for_vocabulary()

    def add_request(self, request: EngineCoreRequest) -> EngineCoreOutput | None:
        """Queue a request; for one that can never run, its last output, which says why.

        One with a grammar gets into the scheduler's queue when that is compiled.
        """
        try:
            if request.grammar is None:
                self.scheduler.add_request(request.to_request())
            else:
                self.grammars.add(request)
        except Exception as error:
            return self._refuse(request, error)
        return None

    def abort(self, req_ids: list[str]) -> list[EngineCoreOutput]:
        """End requests now. Unknown ids are no fault: they may just have finished."""
        outputs = (self.grammars.abort(req_id) or self.scheduler.finish_request(req_id) for req_id in req_ids)
        return [output for output in outputs if output is not None]

    def request_ids(self, front: int) -> list[str]:
        """Ids of the requests of one front end that wait or run."""
        waiting = [request.req_id for request in self.grammars.waiting() if request.front == front]
        return waiting + [request.req_id for request in self.scheduler.requests() if request.front == front]

    @property
    def has_work(self) -> bool:
        return self._scheduler_has_work or len(self._lane) > 0 or self.grammars.num_waiting > 0

    @property
    def _scheduler_has_work(self) -> bool:
        return self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests()

    def step(self) -> StepOutput:
        """One round. Raises only when the device is lost. While grammars alone are compiled, a short wait for one."""
        outputs = self._admit_compiled()
        while self._may_submit and self._submit_next(outputs):
            pass
        if not self._lane:
            return StepOutput(outputs, self.stats())
        scheduled, result, seconds = self._lane.take()
        outputs += self.scheduler.update_from_output(scheduled, result)
        if self.grammars.num_running:
            outputs += self._end(self.grammars.advance(outputs))
        num_tokens = scheduled.total_num_scheduled_tokens
        stalls = self.scheduler.stalls.take()
        return StepOutput(outputs, self.stats(), result.bucket_uses, seconds, num_tokens, stalls)

    @property
    def _may_submit(self) -> bool:
        if not self._lane:
            return self._scheduler_has_work
        is_known = self.grammars.num_running == 0
        return len(self._lane) < self._lane.depth and is_known and self.scheduler.can_run_ahead

    def _submit_next(self, outputs: list[EngineCoreOutput]) -> bool:
        """Schedule a step and hand it over, if there is anything in it."""
        scheduled = self.scheduler.schedule()
        if self.grammars.num_running:
            failures = self.grammars.fill_masks(scheduled.grammar_masks, self.scheduler.sampling_req_ids())
            outputs += self._end(failures)
        if scheduled.is_empty:
            return False
        self._lane.submit(scheduled)
        return True

    def stats(self) -> SchedulerStats:
        stats = self.scheduler.stats()
        stats.num_waiting += self.grammars.num_waiting
        stats.num_waiting_tokens += self.grammars.num_waiting_tokens
        return stats

    def _admit_compiled(self) -> list[EngineCoreOutput]:
        """Queue the requests whose grammars are ready; the last outputs of those that cannot run."""
        refused = []
        for request, error in self.grammars.take_ready(may_wait=not self._scheduler_has_work):
            try:
                if error is not None:
                    raise error
                self.scheduler.add_request(request.to_request())
            except Exception as reason:
                self.grammars.drop(request.req_id)
                refused.append(self._refuse(request, reason))
        return refused

    def _end(self, endings: list[Ending]) -> list[EngineCoreOutput]:
        outputs = (self.scheduler.finish_request(ending.req_id, ending.reason, ending.error) for ending in endings)
        return [output for output in outputs if output is not None]

    def _refuse(self, request: EngineCoreRequest, error: Exception) -> EngineCoreOutput:
        logger.warning("request %s refused: %s", request.req_id, error)
        return EngineCoreOutput(request.req_id, [], finish_reason="error", error=str(error), front=request.front)

    def reset_prefix_cache(self, reset_store: bool = False) -> bool:
        """Forget cached prefixes, and with `reset_store` those in the KV store; running requests keep their blocks."""
        self.scheduler.reset_prefix_cache(reset_store)
        self.executor.reset_prefix_cache(reset_store)
        return True

    def _save_computed(self) -> None:
        """Have the KV store save what the last step computed."""
        saves = self.scheduler.kv_traffic.take_orders()
        if saves:
            self.executor.execute(SchedulerOutput(kv_orders=saves))

    def executor_stats(self) -> dict[str, Any]:
        return self.executor.stats()

    def check_integrity(self) -> bool:
        """Raises IntegrityError if a row, block or queue entry leaked."""
        self.scheduler.check_integrity()
        return True

    def shutdown(self) -> None:
        self.grammars.close()
        self._lane.close()
        self._save_computed()
        self.executor.shutdown()
