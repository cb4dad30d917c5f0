"""The process that was started, where several fronts answer HTTP: it keeps the engine and the fronts.

It ends as a server with one front does, and with the same status: drained at a signal (0), with the engine (1), with a
start that failed (1, and one line of the log). A front that dies, or hangs and is killed for it, ends the server with
status 1 once the others are drained: what it held in the engine is freed at once. When this process dies, the pipes
close and all its children end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec
import psutil
from starlette.datastructures import State

from vllm import envs
from vllm.engine.processes.core_client import ProcessClient
from vllm.engine.processes.core_proc import encode_config
from vllm.engine.processes.front_table import Column, FrontTable
from vllm.engine.processes.liveness import BeatWatch
from vllm.engine.processes.private_directory import PrivateDirectory
from vllm.engine.processes.startup import StartProgress
from vllm.entrypoints.openai.app import LISTENING, SERVING, build_app, engine_args
from vllm.entrypoints.openai.fronts.control import (
    FromFront,
    Lost,
    NextEngine,
    Serving,
    Spec,
    Stop,
    ToFront,
    from_front_decoder,
    line_of,
)
from vllm.entrypoints.openai.fronts.shared import core_address, metrics_directory
from vllm.entrypoints.server.engine_life import EngineLife, Readiness
from vllm.entrypoints.server.launcher import SIGNALS, heeds_hangup, http_config
from vllm.exceptions import VLLMError
from vllm.logger import init_logger

logger = init_logger(__name__)

_BACKLOG = 2048
_GRACE_SECONDS = 10.0
"""What a front may take to end beyond the time that its requests get."""
_LAST_WORDS_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_LONGEST_SECONDS = 1e8
_LONGEST_LINE = 1 << 20


async def serve_fronts(args: argparse.Namespace, listener: socket.socket, address: str) -> int:
    """Serve until told to stop. The process's exit status. Raises what a start fails with."""
    http_config(build_app(args), args).load()  # what would fail in every front fails once, here
    with contextlib.closing(PrivateDirectory()) as directory:
        return await Owner(args, listener, address, directory.path).run()


class Front:
    """A front's process, as its owner sees it."""

    def __init__(
        self,
        index: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.index = index
        self.engine = 0
        """The number of the last engine that it took requests for."""
        self.given_up = False
        self._killed = False
        self._process = process
        self._reader, self._writer = reader, writer

    @classmethod
    async def start(cls, spec: Spec) -> Front:
        ours, theirs = socket.socketpair()
        metrics = str(metrics_directory(Path(spec.directory)))
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.fronts.front",
                stdin=theirs.fileno(),
                pass_fds=(spec.listener,),
                env={**envs.of_children(), "PROMETHEUS_MULTIPROC_DIR": metrics},
            )
        front = cls(spec.index, process, *await asyncio.open_unix_connection(sock=ours, limit=_LONGEST_LINE))
        front.tell(spec)
        return front

    def tell(self, message: ToFront) -> None:
        if not self._writer.is_closing():
            self._writer.write(line_of(message))

    async def hear(self) -> FromFront | None:
        """What it says next; None when it has ended."""
        with contextlib.suppress(ConnectionError):
            if line := await self._reader.readline():
                return from_front_decoder.decode(line)
        return None

    async def ended(self) -> int:
        """Its exit status; negative: the signal that killed it."""
        code = await self._process.wait()
        self._writer.close()
        return code

    def processor_seconds(self) -> float:
        """That it has used so far."""
        with contextlib.suppress(psutil.Error):  # it has ended
            times = psutil.Process(self._process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def kill(self) -> bool:
        """Whether it had not ended, nor been killed."""
        if self._killed or self._process.returncode is not None:
            return False
        self._process.kill()
        self._killed = True
        return True

    def give_up(self) -> bool:
        """Kill it, and ask no more how it ended; whether it had not."""
        self.given_up |= self.kill()
        return self.given_up


class Owner:
    def __init__(self, args: argparse.Namespace, listener: socket.socket, address: str, directory: Path) -> None:
        """directory: private, and removed by the caller when this has run."""
        self._args = args
        self._listener = listener
        self._address = address
        self._directory = directory
        self._table = FrontTable(directory / "table", args.api_server_count)
        self._fronts: list[Front] = []
        self._engine = 0
        self._life = EngineLife(
            State({"readiness": Readiness()}),
            self._start_core,
            self._watch_core,
            args.max_engine_restarts,
            reports=False,
        )
        self._watching: asyncio.Task[None] | None = None
        self._ending = self._stopping = False
        self._fault: BaseException | None = None
        self._status = 0

    async def run(self) -> int:
        """The exit status of the server."""
        self._loop = asyncio.get_running_loop()
        metrics_directory(self._directory).mkdir()
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._take_signal)
        if heeds_hangup():
            self._loop.add_signal_handler(signal.SIGHUP, self._stop)
        await self._start_fronts()
        logger.info(LISTENING, self._address)
        life = asyncio.ensure_future(self._life.run())
        life.add_done_callback(self._take_end_of_engine)
        watching = asyncio.create_task(self._watch_fronts())
        try:
            await asyncio.gather(*map(self._attend, self._fronts))
        finally:
            watching.cancel()
            life.cancel()
            await asyncio.wait((life,))
            await asyncio.to_thread(self._life.shutdown)
            for number in (*SIGNALS, signal.SIGHUP):
                self._loop.remove_signal_handler(number)
        if self._fault is not None:
            raise self._fault
        return self._status

    async def _start_fronts(self) -> None:
        """They inherit the socket, which is theirs alone from then on: it closes with the last of them."""
        text, count = json.dumps(vars(self._args)), self._args.api_server_count
        with self._listener as listener:
            listener.listen(_BACKLOG)
            for index in range(count):
                spec = Spec(text, index, count, str(self._directory), listener.fileno())
                self._fronts.append(await Front.start(spec))
        if self._stopping:  # by a signal meanwhile
            self._tell(Stop())

    async def _attend(self, front: Front) -> None:
        """Until it has ended."""
        while (message := await front.hear()) is not None:
            if isinstance(message, Serving):
                front.engine = message.number
                if all(each.engine == self._engine for each in self._fronts):
                    logger.info(SERVING, ", ".join(message.models), self._address)
            else:
                self._fail(VLLMError(message.reason))
        code = await front.ended()
        is_expected = self._ending and (code == 0 or not front.engine)  # a signal to all may meet one that begins
        if not front.given_up and not is_expected:
            self._mourn(front, code)

    async def _watch_fronts(self) -> None:
        """Kill one that answers nobody any more, so that it ends like one that died."""
        limit = envs.VLLM_FRONT_TIMEOUT_SECONDS
        watches = [BeatWatch(time.monotonic()) for _ in self._fronts]
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            beats = self._table.column(Column.BEATS)
            for front, watch in zip(self._fronts, watches, strict=True):
                watch.look(time.monotonic(), beats[front.index], front.processor_seconds)
                if watch.is_dead(limit) and front.kill():
                    busy = f"was busy with one thing for {watch.silent:.0f} s"
                    how = "showed no life" if watch.still > limit else busy
                    logger.error("front %d of %d %s and was killed", front.index + 1, len(self._fronts), how)

    def _mourn(self, front: Front, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        logger.error("front %d of %d %s: the server ends", front.index + 1, len(self._fronts), how)
        self._table.clear(front.index)
        if self._life.engine is not None and not self._life.engine.errored:
            self._life.engine.leave(front.index)
        self._status = 1
        self._stop()

    # The engine.

    def _start_core(self, progress: StartProgress) -> ProcessClient:
        config = engine_args(self._args).create_engine_config()
        progress.check()
        self._engine += 1
        announcement = NextEngine(self._engine, msgspec.Raw(encode_config(config).strip()))
        self._loop.call_soon_threadsafe(self._tell, announcement)
        addresses = [core_address(self._directory, self._engine, index) for index in range(len(self._fronts))]
        return ProcessClient(config, progress, addresses)

    async def _watch_core(self, core: ProcessClient) -> None:
        self._watching = asyncio.create_task(self._announce_loss(self._engine, core))

    async def _announce_loss(self, number: int, core: ProcessClient) -> None:
        while core.dead_error is None:
            await asyncio.sleep(_LOOK_SECONDS)
        self._tell(Lost(number, str(core.dead_error)))

    def _take_end_of_engine(self, life: asyncio.Future[None]) -> None:
        if life.cancelled():
            return
        if (error := life.exception()) is not None:
            self._fail(error)
        elif not envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            self._ending, self._status = True, 1
            self._loop.call_later(_LAST_WORDS_SECONDS, self._stop)  # they end by themselves; one may wait for an engine

    # The end.

    def _take_signal(self) -> None:
        if self._stopping:
            self._tell(Stop(at_once=True))
        else:
            self._stop()

    def _fail(self, error: BaseException) -> None:
        """A start failed. Of the first, nobody was served yet."""
        self._fault = self._fault or error
        self._stop()
        if not any(front.engine for front in self._fronts):
            for front in self._fronts:
                front.give_up()

    def _stop(self) -> None:
        """Let no front take a request more, and each end when what it runs has ended."""
        if self._stopping:
            return
        self._ending = self._stopping = True
        self._table.drain()
        self._tell(Stop())
        self._loop.call_later(
            min(self._args.shutdown_timeout, _LONGEST_SECONDS) + _GRACE_SECONDS, self._kill_late_fronts
        )

    def _kill_late_fronts(self) -> None:
        """A front that has not served yet holds nobody's request: it may be killed while it starts."""
        for front in self._fronts:
            if front.give_up() and front.engine:
                logger.error("front %d of %d did not end, and was killed", front.index + 1, len(self._fronts))
                self._status = 1

    def _tell(self, message: ToFront) -> None:
        for front in self._fronts:
            front.tell(message)
