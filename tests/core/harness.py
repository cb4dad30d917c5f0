"""A scheduler and a fake device, run together, with what each request was told so far."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from tests.core.fake_device import EOS, FakeDevice, solo, vector_of
from vllm.config import VllmConfig
from vllm.core.contract import PromptImages, SchedulerOutput
from vllm.core.outputs import EngineCoreOutput
from vllm.core.request import Request
from vllm.core.scheduler import Scheduler
from vllm.core.work import CorePooling
from vllm.sample.core_sampling import CoreSampling
from vllm.sampling_params import SamplingParams


@dataclass
class Told:
    """What the front knows of a request."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    num_logprobs: int = 0
    num_prompt_logprobs: int = 0
    end: EngineCoreOutput | None = None


class Engine:
    """Every request is told whole; each step checks that the scheduler's books balance.

    run_ahead: steps are scheduled before the last one is updated, where the scheduler can.
    """

    def __init__(self, config: VllmConfig, *, run_ahead: bool = False, **device: int) -> None:
        self.config = config
        self.depth = 2 if run_ahead else 1
        self.under_way: deque[SchedulerOutput] = deque()
        self.num_ahead = 0
        self.device = FakeDevice(config, **device)  # type: ignore[arg-type]
        self.now = 0.0
        self.scheduler = Scheduler(config, clock=self._tick)
        self.told: dict[str, Told] = {}
        self.admitted: list[str] = []
        self.num_added = 0

    def _tick(self) -> float:
        self.now += 1.0
        return self.now

    def add(
        self,
        prompt: list[int],
        *,
        req_id: str | None = None,
        priority: int = 0,
        lora_id: int = 0,
        cache_salt: str | None = None,
        image_hashes: tuple[str, ...] = (),
        pooling: Literal["last", "mean"] | None = None,
        **params: object,
    ) -> str:
        req_id = req_id or f"r{self.num_added}"
        self.num_added += 1
        options = {"temperature": 0.0, "max_tokens": 8, **params}
        sampling = SamplingParams(**options).for_core([EOS])  # type: ignore[arg-type]
        request = Request(
            req_id,
            prompt,
            CorePooling(pooling) if pooling else sampling,
            arrival_time=float(self.num_added),
            priority=priority,
            lora_id=lora_id,
            cache_salt=cache_salt,
            images=PromptImages(b"", (0, 0, 0, 0), image_hashes) if image_hashes else None,
        )
        self.scheduler.add_request(request)
        self.told[req_id] = Told(request)
        return req_id

    def abort(self, req_id: str) -> None:
        output = self.scheduler.finish_request(req_id, "abort")
        if output is not None:
            self._tell(output)
        self.scheduler.check_integrity()

    def change_weights(self) -> None:
        """From now on the KV of finished requests is worth nothing. Steps under way are run first."""
        while self.under_way:
            self._finish_step()
        self.device.version += 1
        self.device.store.clear()
        self.scheduler.reset_prefix_cache(reset_store=True)
        self.scheduler.check_integrity()

    def step(self, abort_between: tuple[str, ...] = ()) -> list[EngineCoreOutput]:
        """schedule -> execute -> update; `abort_between` are aborted while the device runs."""
        while len(self.under_way) < self.depth and (not self.under_way or self.scheduler.can_run_ahead):
            work = self.scheduler.schedule()
            self.admitted += [new.req_id for new in work.new_requests]
            self.scheduler.check_integrity()
            if self.under_way and not (work.num_scheduled_tokens or work.finished_req_ids):
                break
            self.num_ahead += bool(self.under_way and work.num_scheduled_tokens)
            self.under_way.append(work)
        return self._finish_step(abort_between)

    def _finish_step(self, abort_between: tuple[str, ...] = ()) -> list[EngineCoreOutput]:
        work = self.under_way.popleft()
        result = self.device.execute(work)
        for req_id in abort_between:
            self.abort(req_id)
        outputs = self.scheduler.update_from_output(work, result)
        for output in outputs:
            self._tell(output)
        self.scheduler.check_integrity()
        return outputs

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left, neither work nor finished ids to deliver."""
        for _ in range(max_steps):
            scheduler = self.scheduler
            if not (self.under_way or scheduler.has_unfinished_requests() or scheduler.has_finished_requests()):
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def check_clean(self) -> None:
        """Nothing is left behind anywhere."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        scheduler.check_integrity()
        assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_waiting_tokens) == (0, 0, 0)
        assert (pool.num_free, pool.num_promised) == (pool.num_blocks, 0)
        assert not scheduler.has_finished_requests()
        assert not self.device.rows
        assert all(told.end is not None for told in self.told.values())

    def check_texts(self) -> None:
        """Each request got what it gets alone; one that was cut short got a beginning of it."""
        for req_id, told in self.told.items():
            request = told.request
            assert told.end is not None, req_id
            if isinstance(request.work, CorePooling):
                assert not told.token_ids
                if told.end.finish_reason not in ("abort", "error"):
                    assert (told.end.finish_reason, told.end.vector) == ("stop", vector_of(request.prompt_token_ids))
                continue
            expected = self.expected(request)
            if told.end.finish_reason in ("abort", "error"):
                assert told.token_ids == expected[: len(told.token_ids)], req_id
            else:
                assert told.token_ids == expected, req_id
                stopped = expected[-1] in (request.eos_token_ids | request.stop_token_ids)
                stopped = stopped and len(expected) > request.min_tokens
                assert told.end.finish_reason == ("stop" if stopped else "length"), req_id
                if request.work.prompt_logprobs is not None:
                    assert told.num_prompt_logprobs == request.num_prompt_tokens - 1, req_id
            assert told.num_logprobs == len(told.token_ids), req_id

    def expected(self, request: Request) -> list[int]:
        params = request.work
        assert isinstance(params, CoreSampling)
        room = self.config.model_config.max_len - request.num_prompt_tokens
        num_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        stop = set(request.eos_token_ids | request.stop_token_ids)
        return solo(request.prompt_token_ids, num_tokens, stop, params.min_tokens)

    def _tell(self, output: EngineCoreOutput) -> None:
        told = self.told[output.req_id]
        assert told.end is None, f"{output.req_id} was told something after its end"
        told.token_ids += output.new_token_ids
        told.num_logprobs += len(output.logprobs or [])
        told.num_prompt_logprobs += len(output.prompt_logprobs or [])
        if output.finished:
            told.end = output
