"""How the front reaches an engine core: in the same process, or in a child.

`InprocClient` is driven by its caller, step by step. `ProcessClient` owns a child process (`core_proc`), a private
directory with its sockets, and a thread that watches it: an ended child is seen at once; one that shows no life for
STALL_SECONDS, or hangs in a step, is unhealthy by `check_health`, and well again when it goes on (`liveness`); one that
stays silent for GIVE_UP_SECONDS, or whose step takes longer than any may, is killed, and every request hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from vllm import envs
from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.engine.core import CALLS, EngineCore
from vllm.engine.core_proc import encode_config
from vllm.engine.liveness import STALL_SECONDS, LivedTime
from vllm.engine.messages import (
    Abort,
    Call,
    EngineCoreRequest,
    Fatal,
    FromCore,
    Heartbeat,
    Ready,
    Reply,
    Shutdown,
    Starting,
    StepOutput,
    ToCore,
    encoder,
    from_core_decoder,
)
from vllm.engine.startup import StartCancelled, StartProgress
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.exceptions import EngineDeadError
from vllm.logger import init_logger
from vllm.neuron.executor import NeuronExecutor

logger = init_logger(__name__)

GIVE_UP_SECONDS = 30.0
_POLL_MS = 250
_GRACE_SECONDS = 5.0


class InprocClient:
    """An engine core in this process."""

    def __init__(self, config: VllmConfig) -> None:
        self.core = EngineCore(config, NeuronExecutor(config))
        self.capabilities: Capabilities = self.core.executor.capabilities
        self.executor_stats: dict[str, Any] = self.core.executor_stats()
        self._refused: list[Any] = []

    def add_request(self, request: EngineCoreRequest) -> None:
        refusal = self.core.add_request(request)
        if refusal is not None:
            self._refused.append(refusal)

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        self.core.set_grammar_tokenizer(tokenizer)

    def abort(self, req_ids: list[str]) -> None:
        """End requests; nothing more is heard of them."""
        self.core.abort(req_ids)

    def step(self) -> StepOutput:
        """What was refused since the last step, and the next step's outputs."""
        refused, self._refused = self._refused, []
        output = self.core.step() if self.core.has_work else StepOutput()
        output.outputs = refused + output.outputs
        return output

    def settle(self) -> None:
        """After everything was aborted: let the device side learn of it."""
        while self.core.has_work:
            self.core.step()

    def call(self, method: str, *args: Any) -> Any:
        """One of `core.CALLS`."""
        if method not in CALLS:
            raise ValueError(f"unknown call {method!r}; known: {', '.join(CALLS)}")
        return getattr(self.core, method)(*args)

    def shutdown(self) -> None:
        self.core.shutdown()


class ProcessClient:
    """An engine core in a child process.

    Construction blocks until the child is ready; its log goes where this process's does. Raises EngineDeadError with
    the child's own words if it fails to start, StartCancelled if `progress` says so meanwhile. Requests may be sent
    from one thread (the event loop's); `receive` is awaited by one task.
    """

    def __init__(self, config: VllmConfig, progress: StartProgress | None = None) -> None:
        self.dead_error: EngineDeadError | None = None
        self.on_death: Callable[[EngineDeadError], None] = lambda error: None
        self._closing = False
        self._silence = LivedTime(time.monotonic())
        self._beat = Heartbeat()
        self._call_ids = itertools.count()
        self._replies: dict[int, asyncio.Future[Any]] = {}

        self._directory = tempfile.mkdtemp(prefix="vllm-", dir=envs.VLLM_RPC_BASE_PATH or None)
        address = f"ipc://{self._directory}/core"
        self._context = zmq.Context()
        self._input = self._bind(zmq.PUSH, f"{address}.in")
        self._output = self._bind(zmq.PULL, f"{address}.out")
        self._beats = self._bind(zmq.PULL, f"{address}.beat")
        self._async_output: zmq.asyncio.Socket | None = None

        command = [sys.executable, "-m", "vllm.engine.core_proc", address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            ready = self._start(config, progress or StartProgress())
        except (StartCancelled, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()
            self.shutdown()
            raise
        except BaseException:
            self.shutdown()
            raise
        self.capabilities: Capabilities = ready.capabilities
        self.executor_stats: dict[str, Any] = ready.executor_stats
        self._watcher = threading.Thread(target=self._watch_or_end, daemon=True, name="engine-watch")
        self._watcher.start()

    def add_request(self, request: EngineCoreRequest) -> None:
        self._send(request)

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        self._send(tokenizer)

    def abort(self, req_ids: list[str]) -> None:
        """End requests. Their last outputs, if any, still come."""
        if req_ids and self.dead_error is None:
            self._send(Abort(req_ids))

    async def call(self, method: str, *args: Any) -> Any:
        """One of `core.CALLS`. Raises RuntimeError with the core's words if it fails."""
        call_id = next(self._call_ids)
        future = asyncio.get_running_loop().create_future()
        self._replies[call_id] = future
        try:
            self._send(Call(call_id, method, list(args)))
            return await future
        finally:
            self._replies.pop(call_id, None)

    def call_at_start(self, method: str) -> None:
        """The same, blocking, before anything is received. Raises EngineDeadError if the child dies of it."""
        self._send(Call(next(self._call_ids), method))
        while not isinstance(message := self._next_message(), Reply):
            if isinstance(message, Fatal) or self.process.poll() is not None:
                error = EngineDeadError(message.message if isinstance(message, Fatal) else self._obituary())
                self.shutdown()
                raise error
        if message.error is not None:
            raise RuntimeError(message.error)

    async def receive(self) -> StepOutput:
        """The next outputs. Raises EngineDeadError once the child is gone and all it sent was read."""
        if self._async_output is None:
            self._async_output = zmq.asyncio.Socket.from_socket(self._output)
        while True:
            if not await self._async_output.poll(_POLL_MS):
                if self.dead_error is not None:
                    self._fail_calls(self.dead_error)
                    raise self.dead_error
                continue
            message = _decoded(await self._async_output.recv())
            if isinstance(message, StepOutput):
                return message
            if isinstance(message, Reply):
                self._resolve(message)
            elif isinstance(message, Fatal):
                self._die(message.message)

    def check_health(self) -> None:
        """Raises EngineDeadError if the child is gone, shows no life, or hangs in a step."""
        if self.dead_error is not None:
            raise self.dead_error
        if self.process.poll() is not None:
            raise EngineDeadError(self._obituary())
        if self._silence.seconds > STALL_SECONDS:
            raise EngineDeadError(f"the engine process has shown no life for {self._silence.seconds:.1f} s")
        if self._beat.step_age > self._beat.step_allowance:
            raise EngineDeadError(f"a step of the engine has taken {self._beat.step_age:.1f} s and goes on")

    def shutdown(self) -> None:
        """Stop the child, kindly at first, and remove the sockets. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self.process.poll() is None:
            with contextlib.suppress(zmq.Again):  # it has not connected yet
                self._input.send(encoder.encode(Shutdown()), zmq.NOBLOCK)
            try:
                self.process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if watcher := getattr(self, "_watcher", None):
            watcher.join()
        for socket in (self._input, self._output, self._beats):
            socket.close(linger=0)
        self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, config: VllmConfig, progress: StartProgress) -> Ready:
        if self.process.stdin is None:
            raise RuntimeError("the engine process was started without a pipe")
        progress.report("process")
        self.process.stdin.write(encode_config(config))
        self.process.stdin.flush()
        limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
        deadline = time.monotonic() + limit if limit else float("inf")
        while isinstance(message := self._first_message(progress, deadline), Starting):
            progress.report(message.phase, message.share, message.detail)
        if isinstance(message, Fatal):
            raise EngineDeadError(message.message)
        if not isinstance(message, Ready):
            raise EngineDeadError(f"the engine process began with {type(message).__name__} instead of Ready")
        self._silence.restart(time.monotonic())
        return message

    def _first_message(self, progress: StartProgress, deadline: float) -> FromCore:
        """What the child says next, before it is ready."""
        while (message := self._next_message()) is None:
            progress.check()
            if self.process.poll() is not None and not self._output.poll(0):
                raise EngineDeadError(self._obituary())
            if time.monotonic() > deadline:
                limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
                raise EngineDeadError(f"the engine process was not ready after VLLM_ENGINE_READY_TIMEOUT_S={limit} s")
        return message

    def _next_message(self) -> FromCore | None:
        return _decoded(self._output.recv()) if self._output.poll(_POLL_MS) else None

    def _send(self, message: ToCore) -> None:
        if self.dead_error is not None:
            raise self.dead_error
        self._input.send(encoder.encode(message))

    def _resolve(self, reply: Reply) -> None:
        future = self._replies.get(reply.call_id)
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(RuntimeError(reply.error))

    def _fail_calls(self, error: EngineDeadError) -> None:
        for future in self._replies.values():
            if not future.done():
                future.set_exception(error)

    def _watch_or_end(self) -> None:
        """An engine that is not watched could die unseen."""
        try:
            self._watch()
        except Exception as error:
            logger.exception("the engine cannot be watched any more")
            self._kill(f"the engine cannot be watched any more: {error}")

    def _watch(self) -> None:
        """In a thread of its own, so that a busy event loop is not mistaken for a silent child."""
        while not self._closing and self.dead_error is None:
            if self._beats.poll(_POLL_MS) and isinstance(beat := _decoded(self._beats.recv()), Heartbeat):
                self._beat = beat
                self._silence.restart(time.monotonic())
            if self._closing:
                return
            limit = envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS
            silence = self._silence.look(time.monotonic())
            if self.process.poll() is not None:
                self._die(self._obituary())
            elif silence > GIVE_UP_SECONDS:
                self._kill(f"the engine process showed no life for {silence:.0f} s")
            elif self._beat.step_age > limit:
                self._kill(f"a step of the engine took more than VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS={limit:g} s")

    def _kill(self, message: str) -> None:
        self.process.kill()
        self._die(message)

    def _die(self, message: str) -> None:
        if self.dead_error is None and not self._closing:
            logger.error("the engine is dead: %s", message)
            self.dead_error = EngineDeadError(message)
            self.on_death(self.dead_error)

    def _obituary(self) -> str:
        code = self.process.poll()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return f"the engine process {how}; its log has the cause"

    def _bind(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.bind(address)
        return socket


def _decoded(frame: bytes) -> FromCore | None:
    """None for what no core says."""
    try:
        message: FromCore = from_core_decoder.decode(frame)
    except msgspec.DecodeError:
        logger.exception("a message that is none of the engine's was dropped")
        return None
    return message
