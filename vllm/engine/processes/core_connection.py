"""The way to a core in another process: what a front sends it, hears of it, and how it learns of its end.

Three ZMQ sockets, bound in a private directory; the core connects to them. One task awaits `receive`; a thread reads
the core's signs of life, so that a busy event loop is not mistaken for a silent core. Whose child the core is, is
another matter: see `core_client`.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from vllm import envs
from vllm.core.contract import Capabilities
from vllm.engine.messages import (
    Abort,
    Call,
    EngineCoreRequest,
    Fatal,
    FromCore,
    Heartbeat,
    Ready,
    Reply,
    Starting,
    StepOutput,
    ToCore,
    encoder,
    from_core_decoder,
)
from vllm.engine.processes.liveness import STALL_SECONDS, LivedTime
from vllm.engine.processes.startup import StartProgress
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.exceptions import EngineDeadError
from vllm.logger import init_logger

logger = init_logger(__name__)

_POLL_MS = 250
_REACH_SECONDS = 5.0


class CoreConnection:
    """A core at the other end of the sockets at `address` (a prefix). `wait_until_ready` comes first.

    Requests may be sent from one thread (the event loop's). Subclasses say when the core is lost.
    """

    capabilities: Capabilities
    executor_stats: dict[str, Any]

    def __init__(self, address: str, front: int = 0) -> None:
        """front: which of the core's fronts this is."""
        self.dead_error: EngineDeadError | None = None
        self._front = front
        self._closing = False
        self._silence = LivedTime(time.monotonic())
        self._beat = Heartbeat()
        self._call_ids = itertools.count()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._context = zmq.Context()
        self._input = self._bind(zmq.PUSH, f"{address}.in")
        self._async_output = zmq.asyncio.Socket(self._context, zmq.PULL)
        self._async_output.set_hwm(0)
        self._async_output.bind(f"{address}.out")
        self._output: zmq.Socket[bytes] = zmq.Socket.shadow(self._async_output.underlying)
        """The same socket, for those who wait for it outside of an event loop. It is the other one that is closed."""
        self._beats = self._bind(zmq.PULL, f"{address}.beat")
        self._watcher = threading.Thread(target=self._watch_or_end, daemon=True, name="engine-watch")

    @property
    def errored(self) -> bool:
        return self.dead_error is not None

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
            self._send(Call(call_id, method, list(args), self._front))
            return await future
        finally:
            self._replies.pop(call_id, None)

    def call_at_start(self, method: str) -> None:
        """The same, blocking, before anything is received. Raises EngineDeadError if the core dies of it."""
        self._send(Call(next(self._call_ids), method, front=self._front))
        while not isinstance(message := self._next_message(), Reply):
            reason = message.message if isinstance(message, Fatal) else self._lost()
            if reason is not None:
                self.shutdown()
                raise EngineDeadError(reason)
        if message.error is not None:
            raise RuntimeError(message.error)

    async def receive(self) -> StepOutput:
        """The next outputs. Raises EngineDeadError once the core is gone and all it sent was read."""
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
        """Raises EngineDeadError if the core is gone, shows no life, or hangs in a step."""
        if self.dead_error is not None:
            raise self.dead_error
        if (reason := self._lost()) is not None:
            raise EngineDeadError(reason)
        if self._silence.seconds > STALL_SECONDS:
            raise EngineDeadError(f"the engine process has shown no life for {self._silence.seconds:.1f} s")
        if self._beat.step_age > self._beat.step_allowance:
            raise EngineDeadError(f"a step of the engine has taken {self._beat.step_age:.1f} s and goes on")

    def shutdown(self) -> None:
        """Remove the sockets. Safe to call twice."""
        if not self._closing:
            self._closing = True
            self._close()

    def wait_until_ready(self, progress: StartProgress) -> None:
        """Blocks, telling `progress` how far the core has come.

        Raises EngineDeadError with the core's own words if it fails to start, StartCancelled if `progress` says so.
        """
        limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
        deadline = time.monotonic() + limit if limit else float("inf")
        while isinstance(message := self._first_message(progress, deadline), Starting):
            progress.report(message.phase, message.share, message.detail)
        if isinstance(message, Fatal):
            raise EngineDeadError(message.message)
        if not isinstance(message, Ready):
            raise EngineDeadError(f"the engine process began with {type(message).__name__} instead of Ready")
        self.capabilities, self.executor_stats = message.capabilities, message.executor_stats
        self._silence.restart(time.monotonic())
        self._watcher.start()

    def _close(self) -> None:
        if self._watcher.ident is not None:
            self._watcher.join()
        for socket in (self._input, self._async_output, self._beats):
            socket.close(linger=0)
        self._context.term()

    def _lost(self) -> str | None:
        """Why the core is gone, once it is."""
        raise NotImplementedError

    def _look(self, silence: float, step_age: float) -> None:
        """Called several times a second while the core is not known to be lost. Both in seconds."""

    def _die(self, reason: str) -> None:
        if self.dead_error is None and not self._closing:
            self.dead_error = EngineDeadError(reason)

    def _first_message(self, progress: StartProgress, deadline: float) -> FromCore:
        """What the core says next, before it is ready."""
        while (message := self._next_message()) is None:
            progress.check()
            if (reason := self._lost()) is not None and not self._output.poll(0):
                raise EngineDeadError(reason)
            if time.monotonic() > deadline:
                limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
                raise EngineDeadError(f"the engine process was not ready after VLLM_ENGINE_READY_TIMEOUT_S={limit} s")
        return message

    def _next_message(self) -> FromCore | None:
        return _decoded(self._output.recv()) if self._output.poll(_POLL_MS) else None

    def _send(self, message: ToCore) -> None:
        """Nobody is connected where the core is about to be, or is no more: then the watcher will tell."""
        frame = encoder.encode(message)
        deadline = time.monotonic() + _REACH_SECONDS
        while self.dead_error is None and not self._closing and time.monotonic() < deadline:
            try:
                self._input.send(frame, zmq.NOBLOCK)
                return
            except zmq.Again:
                self._input.poll(_POLL_MS, zmq.POLLOUT)
        raise self.dead_error or EngineDeadError("the engine process cannot be reached")

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

    def _give_up(self, reason: str) -> None:
        """The core may live, but is no use."""
        self._die(reason)

    def _watch_or_end(self) -> None:
        """A core that is not watched could die unseen."""
        try:
            self._watch()
        except Exception as error:
            logger.exception("the engine cannot be watched any more")
            self._give_up(f"the engine cannot be watched any more: {error}")

    def _watch(self) -> None:
        while not self._closing and self.dead_error is None:
            if self._beats.poll(_POLL_MS) and isinstance(beat := _decoded(self._beats.recv()), Heartbeat):
                self._beat = beat
                self._silence.restart(time.monotonic())
            if self._closing:
                return
            silence = self._silence.look(time.monotonic())
            if (reason := self._lost()) is not None:
                self._die(reason)
            else:
                self._look(silence, self._beat.step_age)

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
