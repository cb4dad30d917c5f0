"""The engine for servers: the core in a child process, everything that concerns text in this one, asyncio in front.

One task reads what the core sends and hands each request its outputs. A consumer that is slower than its stream gets
several outputs joined; one that goes away has its request aborted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import weakref
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.engine.admission import make_door
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.engine.client import CoreClient
from vllm.engine.frontend import (
    Frontend,
    fixed_adapters,
    load_config_tokenizer,
    refuse_resetting_running,
    refuse_stat_loggers,
    refuse_tracing,
    without_stats,
)
from vllm.engine.observe.metrics import SharedTally, served_name
from vllm.engine.observe.tracing import RequestTracer
from vllm.engine.place import Place
from vllm.engine.processes.core_client import AttachedClient, ProcessClient
from vllm.engine.processes.fronts import Attachment
from vllm.engine.processes.startup import StartProgress
from vllm.engine.text.input_processor import ProcessedRequest
from vllm.exceptions import EngineDeadError, QueueFullError, VLLMClientError
from vllm.inputs import PromptType
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext

logger = init_logger(__name__)

_LEAVE_SECONDS = 1.0
_SUBMIT_AT_ONCE = 256
"""Requests of the core: a user's request may be thousands."""


class RequestOutputCollector:
    """Hands one request's outputs to its consumer. Those not fetched yet are joined, DELTA ones end to end."""

    def __init__(self, output_kind: RequestOutputKind, request_id: str) -> None:
        self.request_id = request_id
        self._aggregate = output_kind is RequestOutputKind.DELTA
        self._output: RequestOutput | None = None
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        if self._output is None:
            self._output = output
            self._ready.set()
        else:
            self._output.add(output, self._aggregate)

    def fail(self, error: Exception) -> None:
        """What was put before is still fetched first."""
        self._error = error
        self._ready.set()

    async def get(self) -> RequestOutput:
        """The next output. Raises what `fail` was given."""
        await self._ready.wait()
        self._ready.clear()
        output, self._output = self._output, None
        if output is None:
            raise self._error or EngineDeadError("the engine is gone")
        if self._error is not None:
            self._ready.set()
        return output


class AsyncLLM(Frontend):
    """Requests in, streams of `RequestOutput` out. Used from one event loop; made inside or outside of one."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        *,
        log_requests: bool = False,
        progress: StartProgress | None = None,
        attachment: Attachment | None = None,
    ) -> None:
        """`vllm_config` is resolved. Blocks until the core is ready; EngineDeadError has its words if it fails.

        progress: told how far the start has come, and may cancel it. attachment: to a core of another process's, as one
        of several fronts; by default the core is a child of this process.
        """
        progress = progress or StartProgress()
        place = attachment.place if attachment else Place()
        endpoint = vllm_config.observability_config.otlp_traces_endpoint
        self.tracer = RequestTracer(endpoint, served_name(vllm_config)) if endpoint else None
        self.log_requests = log_requests
        tokenizer = load_config_tokenizer(vllm_config)
        self.engine_core: CoreClient = (
            AttachedClient(attachment, progress) if attachment else ProcessClient(vllm_config, progress)
        )
        progress.finish()
        super().__init__(
            vllm_config,
            self.engine_core,
            tokenizer,
            place=place,
            startup={"startup_seconds": progress.seconds_by_phase},
            tally=SharedTally(attachment) if attachment else None,
        )
        self._logs_stats = self.log_stats and place.is_recorder
        self._door = make_door(vllm_config.scheduler_config, self.output_processor, attachment)
        if self.grammars.prepare():
            self.engine_core.call_at_start("wait_for_vocabulary")
        self._read_error: EngineDeadError | None = None
        self._collectors: dict[str, RequestOutputCollector] = {}
        self._reader: asyncio.Task[None] | None = None
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._closed = False
        self._finalizer = weakref.finalize(self, self.engine_core.shutdown)
        with contextlib.suppress(RuntimeError):  # no event loop yet: the first call that needs it starts the reader
            self.start_reading()

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        start_engine_loop: bool = True,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: None = None,
        *,
        progress: StartProgress | None = None,
    ) -> AsyncLLM:
        """start_engine_loop: the loop always runs in its own process. stat_loggers: none can be added."""
        return cls.from_vllm_config(
            engine_args.create_engine_config(),
            start_engine_loop,
            usage_context,
            stat_loggers,
            enable_log_requests=getattr(engine_args, "enable_log_requests", False),
            progress=progress,
        )

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: VllmConfig,
        start_engine_loop: bool = True,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: None = None,
        enable_log_requests: bool = False,
        aggregate_engine_logging: bool = False,
        disable_log_stats: bool = False,
        *,
        progress: StartProgress | None = None,
    ) -> AsyncLLM:
        """disable_log_stats: as in the config, for callers that say it here. aggregate_engine_logging: there is one."""
        vllm_config = without_stats(vllm_config) if disable_log_stats else vllm_config
        refuse_stat_loggers(stat_loggers)
        if not start_engine_loop:
            raise VLLMClientError("start_engine_loop=False is not supported: the loop runs in a process of its own")
        return cls(vllm_config, log_requests=enable_log_requests, progress=progress)

    # Generating.

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one request, by its output_kind; the last has `finished` set.

        Closing or cancelling the generator aborts the request. Raises VLLMValidationError for a request that cannot
        be run, QueueFullError where the queue is bounded and full, EngineDeadError when the engine is gone.
        """
        if data_parallel_rank:
            raise VLLMClientError(f"data_parallel_rank={data_parallel_rank}: an engine is one replica")
        trace = self.tracer and self.tracer.begin(request_id, sampling_params, trace_headers)
        collector = await self.add_request(
            request_id,
            prompt,
            sampling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            trace_headers=trace_headers,
            priority=priority,
            prompt_text=prompt_text,
        )
        finished = False
        try:
            while not finished:
                output = await collector.get()
                finished = output.finished
                if trace:
                    trace.note(output)
                yield output
        finally:
            self._collectors.pop(request_id, None)
            if not finished:
                self._abort([request_id])
            if trace:
                trace.end()

    async def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> RequestOutputCollector:
        """Queue a request; its outputs come out of the collector. Raises as `generate` does."""
        if self.tracer is None:
            refuse_tracing(trace_headers)
        await self._unpaused.wait()
        self._check_alive()
        self.start_reading()
        request = self.input_processor.process(
            request_id,
            prompt,
            params,
            arrival_time=arrival_time,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            priority=priority,
            prompt_text=prompt_text,
        )
        if len(request.core_requests) > _SUBMIT_AT_ONCE:
            await asyncio.sleep(0)  # others have the loop, too
        if params.structured_outputs is not None:
            self.grammars.attach(request, await self.grammars.check_async(params))
            self._check_alive()
        self._admit(request)
        collector = RequestOutputCollector(request.params.output_kind, request_id)
        try:
            self.output_processor.add(request, collector.put)
        finally:
            self._door.publish()
        self._collectors[request_id] = collector
        try:
            for start in range(0, len(request.core_requests), _SUBMIT_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                self._submit(request.core_requests[start : start + _SUBMIT_AT_ONCE], params.n)
        except BaseException:
            self._collectors.pop(request_id, None)
            self._abort([request_id])
            raise
        if self.log_requests:
            logger.info("request %s: %d prompt tokens, %r", request_id, len(request.prompt_token_ids), params)
        return collector

    async def check_structured_outputs(self, params: SamplingParams) -> None:
        """Raises VLLMValidationError for a constraint that `generate` would refuse; what passes is remembered."""
        await self.grammars.check_async(params)

    async def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        raise ValueError("AsyncLLM.encode() is only supported for pooling models; this engine generates text")
        yield

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests; each one's generator gives a last output with finish_reason "abort"."""
        self._abort([request_id] if isinstance(request_id, str) else list(request_id))

    async def pause_generation(
        self, *, mode: str = "abort", clear_cache: bool = True, wait_for_inflight_requests: bool = False
    ) -> None:
        """Let nothing new begin. mode: what runs is aborted ("abort") or waited for ("wait").

        clear_cache: forget cached prefixes then. wait_for_inflight_requests: the older way to say "wait".
        """
        if mode not in ("abort", "wait"):
            raise VLLMClientError(
                f"mode={mode!r} is not supported: use 'abort' or 'wait'; what runs cannot stand still"
            )
        self._unpaused.clear()
        if mode == "wait" or wait_for_inflight_requests:
            await self.wait_for_requests_to_drain()
        else:
            self._abort(list(self._collectors))
        if clear_cache:
            await self.reset_prefix_cache()

    async def resume_generation(self) -> None:
        self._unpaused.set()

    async def is_paused(self) -> bool:
        return not self._unpaused.is_set()

    async def wait_for_requests_to_drain(self, drain_timeout: float = 300) -> None:
        """Raises TimeoutError if requests still run after drain_timeout seconds."""
        deadline = asyncio.get_running_loop().time() + drain_timeout
        while self.output_processor.num_unfinished:
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{self.output_processor.num_unfinished} requests run after {drain_timeout} s")
            await asyncio.sleep(0.02)

    # State.

    @property
    def is_running(self) -> bool:
        return not self.errored and not self._closed

    @property
    def is_stopped(self) -> bool:
        return not self.is_running

    @property
    def errored(self) -> bool:
        return (self.engine_core.dead_error or self._read_error) is not None

    @property
    def dead_error(self) -> Exception:
        return self.engine_core.dead_error or self._read_error or EngineDeadError("the engine was shut down")

    async def get_vllm_config(self) -> VllmConfig:
        return self.vllm_config

    async def get_model_config(self) -> ModelConfig:
        return self.model_config

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def is_tracing_enabled(self) -> bool:
        return self.tracer is not None

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine is dead or stuck."""
        self._check_alive()
        self.engine_core.check_health()

    async def do_log_stats(self) -> None:
        self.metrics.log()

    async def executor_stats(self) -> dict[str, Any]:
        """Start-up seconds by phase, artifact and whether it was found, bytes by kind, padding by bucket."""
        stats: dict[str, Any] = await self._call("executor_stats")
        return stats

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget cached prefixes; with `reset_connector` those in the KV store too."""
        refuse_resetting_running(reset_running_requests)
        return bool(await self._call("reset_prefix_cache", reset_connector))

    async def reset_mm_cache(self) -> None:
        """There is none: prompts are text."""

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        raise NotImplementedError("sleep is not supported: the model stays on the device")

    async def wake_up(self, tags: list[str] | None = None) -> None:
        raise NotImplementedError("wake_up is not supported: the engine never sleeps")

    async def is_sleeping(self) -> bool:
        return False

    async def start_profile(self) -> None:
        raise NotImplementedError("no profiler is configured")

    async def stop_profile(self) -> None:
        raise NotImplementedError("no profiler is configured")

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """True for an adapter that was named at start. Raises VLLMValidationError for any other."""
        return self.input_processor.lora_id(lora_request) in self.input_processor.lora_ids

    async def remove_lora(self, lora_id: int) -> bool:
        raise fixed_adapters()

    async def list_loras(self) -> set[int]:
        return self.input_processor.lora_ids

    async def pin_lora(self, lora_id: int) -> bool:
        raise fixed_adapters()

    async def collective_rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("collective_rpc is not supported: code of the caller's is not run in the engine")

    def start_reading(self) -> None:
        """Take in what the core sends, from now on; requests begin it too. Raises RuntimeError outside of a loop."""
        loop = asyncio.get_running_loop()
        if self._reader is None or self._reader.get_loop() is not loop:
            self._reader = loop.create_task(self._read(), name="engine-outputs")

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop the core's process. Safe to call twice. timeout: there is nothing to wait for; requests fail at once."""
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        self._fail_requests(EngineDeadError("the engine was shut down"))
        self.grammars.close()
        if self.tracer is not None:
            self.tracer.close()
        self._finalizer()

    # The way to the core.

    def _check_alive(self) -> None:
        if self.errored or self._closed:
            raise self.dead_error

    def _admit(self, request: ProcessedRequest) -> None:
        """Raises QueueFullError for a request beyond the bounds of the queue."""
        fault = self._door.admit(len(request.core_requests), len(request.prompt_token_ids))
        if fault is not None:
            self.metrics.record_rejection(fault.bound)
            raise QueueFullError(fault.message)

    def _abort(self, request_ids: list[str]) -> None:
        core_ids = self.output_processor.abort(request_ids)
        self._door.publish()
        if core_ids and not self.errored and not self._closed:
            self.engine_core.abort(core_ids)

    async def _call(self, method: str, *args: Any) -> Any:
        self._check_alive()
        self.start_reading()
        return await self.engine_core.call(method, *args)

    def _stop_reading(self) -> None:
        """Before the sockets close. Where another thread runs the loop, the reader has left them when this returns."""
        reader = self._reader
        if reader is None or (loop := reader.get_loop()).is_closed():
            return
        if not loop.is_running() or asyncio._get_running_loop() is loop:
            reader.cancel()
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):  # the loop is busy, or waits for this thread
            asyncio.run_coroutine_threadsafe(_cancelled(reader), loop).result(_LEAVE_SECONDS)

    async def _read(self) -> None:
        """Hand out what the core sends, until it is gone."""
        try:
            while True:
                step = await self.engine_core.receive()
                processed = self.output_processor.process(step.outputs)
                self._door.publish()
                if processed.abort_ids:
                    self.engine_core.abort(processed.abort_ids)
                self.metrics.record_step(step)
                if self._logs_stats:
                    self.metrics.log()
        except EngineDeadError as error:
            self._fail_requests(error)
        except Exception as error:
            logger.exception("outputs of the engine cannot be read any more")
            self._read_error = EngineDeadError(f"outputs of the engine cannot be read: {error}")
            self._fail_requests(self._read_error)

    def _fail_requests(self, error: Exception) -> None:
        self.output_processor.fail_all()
        self._door.publish()
        for collector in self._collectors.values():
            collector.fail(error)
        self._collectors.clear()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


AsyncLLMEngine = AsyncLLM
"""The name of earlier releases."""

__all__ = ["AsyncEngineArgs", "AsyncLLM", "AsyncLLMEngine"]
