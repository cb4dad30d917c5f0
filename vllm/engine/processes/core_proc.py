"""The engine in a process of its own: `python -m vllm.engine.processes.core_proc ADDRESS [FRONT_ADDRESS ...]`.

The configuration comes through standard input, as JSON, and the parent keeps that pipe open: when it closes, the parent
is gone and so is this process. Requests come and outputs go over two ZMQ sockets in the parent's private directory; a
thread of its own sends heartbeats, so that a parent can tell a long step from a dead or stopped process. Signals that
service managers send to a whole group are left to the parent, which drains its streams before it stops the engine.

An address is the prefix of a process's sockets. Where fronts have addresses of their own, they ask and are answered,
and the parent hears only of the engine's start, life and end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import msgspec
import zmq

from vllm.checkpoint import CheckpointError
from vllm.config import VllmConfig
from vllm.engine.core.core import CALLS, EngineCore
from vllm.engine.messages import (
    Abort,
    Call,
    EngineCoreRequest,
    Fatal,
    FromCore,
    Heartbeat,
    Leave,
    Ready,
    Reply,
    Shutdown,
    Starting,
    StepOutput,
    ToCore,
    encoder,
    to_core_decoder,
)
from vllm.engine.processes.fronts import shares
from vllm.engine.processes.liveness import StepWatch
from vllm.engine.processes.vital_threads import start_vital_thread
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.logger import init_logger
from vllm.runner.executor import NeuronExecutor
from vllm.settings.resolve import resolve_quietly
from vllm.utils.heap import freeze_heap

logger = init_logger(__name__)

HEARTBEAT_SECONDS = 0.25
_MESSAGES_AT_ONCE = 256
"""Handled before the next step: one request of a user's may be thousands, and others wait for their tokens."""


def encode_config(config: VllmConfig) -> bytes:
    """A config as one line of JSON, without what `resolve` derives from the rest."""
    return msgspec.json.encode(config.replace(neuron_config=None)) + b"\n"


def decode_config(line: bytes) -> VllmConfig:
    """The resolved config of `encode_config`."""
    config, _ = resolve_quietly(msgspec.json.decode(line, type=VllmConfig))
    return config


class CoreProcess:
    """Runs an `EngineCore` for its parent, and for fronts."""

    def __init__(self, parent: str, fronts: Sequence[str] = ()) -> None:
        addresses = [parent, *fronts]
        self.context = zmq.Context()
        self.input = self.context.socket(zmq.PULL)
        self.input.set_hwm(0)
        for address in addresses:
            self.input.connect(f"{address}.in")
        self.outputs = [self._push(f"{address}.out") for address in addresses]
        self.heartbeats = [self._push(f"{address}.beat") for address in addresses]
        self.fronts = self.outputs[1:] or self.outputs
        self.step_started = 0.0
        self.running = True

    def run(self, config: VllmConfig) -> None:
        """Load, report, and serve until told to stop. A fault that ends the engine is reported before it is raised."""
        core = None
        try:
            core = EngineCore(config, NeuronExecutor(config, self._report))
            freeze_heap()
            self._announce(Ready(core.executor.capabilities, core.executor_stats()))
            start_vital_thread(self._beat, "heartbeat")
            self._loop(core)
        except Exception as error:
            self._announce(Fatal(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self.running = False
            if core is not None:
                core.shutdown()

    def _report(self, phase: str, share: float, detail: str) -> None:
        self._announce(Starting(phase, share, detail))

    def _announce(self, message: FromCore) -> None:
        """To everybody."""
        frame = encoder.encode(message)
        for output in self.outputs:
            _send(output, frame)

    def _report_step(self, step: StepOutput) -> None:
        """To whom it concerns."""
        if len(self.fronts) == 1:
            _send(self.fronts[0], encoder.encode(step))
            return
        for front, share in shares(step, len(self.fronts)):
            _send(self.fronts[front], encoder.encode(share))

    def close(self) -> None:
        """Flush what was sent, for a second at most."""
        for socket in (self.input, *self.heartbeats):
            socket.close(linger=0)
        for output in self.outputs:
            output.close(linger=1000)
        self.context.term()

    def _loop(self, core: EngineCore) -> None:
        while self._take_messages(core):
            if not core.has_work:
                continue
            self.step_started = time.monotonic()
            output = core.step()
            self.step_started = 0.0
            self._report_step(output)

    def _take_messages(self, core: EngineCore) -> bool:
        """Handle what has come; wait for something if there is nothing to run. False: stop."""
        if not core.has_work:
            self.input.poll()
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                frame = self.input.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                message = to_core_decoder.decode(frame)
            except msgspec.DecodeError:
                logger.exception("a message that is none of ours was dropped")
                continue
            if isinstance(message, Shutdown):
                return False
            self._handle(core, message)
        return True

    def _handle(self, core: EngineCore, message: ToCore) -> None:
        if isinstance(message, EngineCoreRequest):
            refusal = None if self._has_left(message) else core.add_request(message)
            if refusal is not None:
                self._report_step(StepOutput([refusal]))
        elif isinstance(message, Abort):
            self._report_step(StepOutput(core.abort(message.req_ids), core.stats()))
        elif isinstance(message, GrammarTokenizer):
            core.set_grammar_tokenizer(message)
        elif isinstance(message, Call):
            _send(self.fronts[message.front], encoder.encode(self._answer(core, message)))
        elif isinstance(message, Leave):
            self.fronts[message.front].close(linger=0)
            self._report_step(StepOutput(core.abort(core.request_ids(message.front)), core.stats()))

    def _has_left(self, request: EngineCoreRequest) -> bool:
        """Whether its front is gone: this was still on its way."""
        return len(self.fronts) > 1 and self.fronts[request.front].closed

    def _answer(self, core: EngineCore, call: Call) -> Reply:
        if call.method not in CALLS:
            return Reply(call.call_id, error=f"unknown call {call.method!r}; known: {', '.join(CALLS)}")
        try:
            return Reply(call.call_id, getattr(core, call.method)(*call.args))
        except Exception as error:
            logger.exception("call %s failed", call.method)
            return Reply(call.call_id, error=f"{type(error).__name__}: {error}")

    def _beat(self) -> None:
        watch = StepWatch()
        while self.running:
            watch.look(self.step_started, time.monotonic())
            frame = encoder.encode(Heartbeat(watch.age, watch.allowance))
            try:
                for heartbeat in self.heartbeats:
                    heartbeat.send(frame)
            except zmq.ZMQError:
                if self.running:
                    raise
                return  # closed at the end, between the question and the sending
            time.sleep(HEARTBEAT_SECONDS)

    def _push(self, address: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.connect(address)
        return socket


def _send(socket: zmq.Socket[bytes], frame: bytes) -> None:
    """Nothing to one that left."""
    if not socket.closed:
        socket.send(frame)


def _exit_with_parent() -> None:
    """Standard input ends when the parent does. Read without its buffer, whose lock would be held at our own end."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process = CoreProcess(sys.argv[1], sys.argv[2:])
    try:
        line = sys.stdin.buffer.readline()
        start_vital_thread(_exit_with_parent, "parent-watch")
        process.run(decode_config(line))
    except CheckpointError as error:
        logger.error("the engine ends: %s", error)
        return 1
    except Exception:
        logger.exception("the engine ends")
        return 1
    finally:
        process.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
