"""One of several fronts: `python -m vllm.entrypoints.openai.fronts.front`, started by the owner.

What the owner says comes through standard input; when that closes, the owner is gone and so is this process. Signals
that service managers send to a whole group are left to the owner, which then tells the fronts to drain.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path

import uvloop

from vllm.engine.async_llm import AsyncLLM
from vllm.engine.place import Place
from vllm.engine.processes.core_proc import decode_config
from vllm.engine.processes.front_table import Column, FrontTable
from vllm.engine.processes.fronts import Attachment
from vllm.engine.processes.startup import StartProgress
from vllm.entrypoints.openai.app import START_ERRORS, build_app, init_app_state
from vllm.entrypoints.openai.cli_args import load_plugins
from vllm.entrypoints.openai.fronts.control import Failed, Lost, NextEngine, OwnerLine, Serving, Spec, Stop
from vllm.entrypoints.openai.fronts.front_server import FrontServer
from vllm.entrypoints.openai.fronts.shared import Shared, core_address
from vllm.entrypoints.server.access_log import hide_from_access_log
from vllm.entrypoints.server.engine_life import EngineLife
from vllm.entrypoints.server.launcher import http_config
from vllm.exceptions import EngineDeadError
from vllm.logger import init_logger
from vllm.utils.heap import freeze_heap

logger = init_logger("vllm.entrypoints.openai.fronts.front")  # also where this module is the program

_LOOK_SECONDS = 0.1
_BEAT_SECONDS = 0.25


class Engines:
    """The engines that the owner announces, one after another, and how each ended."""

    def __init__(self, place: Place, table: FrontTable, directory: Path) -> None:
        self._place, self._table, self._directory = place, table, directory
        self._announced: queue.SimpleQueue[NextEngine] = queue.SimpleQueue()
        self._lost: dict[int, str] = {}

    def hear(self, message: NextEngine | Lost) -> None:
        if isinstance(message, NextEngine):
            self._announced.put(message)
        else:
            self._lost[message.number] = message.reason

    def attach(self, progress: StartProgress) -> tuple[int, AsyncLLM]:
        """The next engine that lives, and its number. Blocks. Raises as the making of an `AsyncLLM` does."""
        while True:
            announced = self._next(progress)
            try:
                return announced.number, self._attach(announced, progress)
            except EngineDeadError:
                if announced.number not in self._lost:
                    raise

    def _next(self, progress: StartProgress) -> NextEngine:
        while True:
            progress.check()
            try:
                return self._announced.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue

    def _attach(self, announced: NextEngine, progress: StartProgress) -> AsyncLLM:
        number = announced.number
        address = core_address(self._directory, number, self._place.index)
        attachment = Attachment(self._place, self._table, address, lambda: self._lost.get(number))
        return AsyncLLM(decode_config(bytes(announced.config)), progress=progress, attachment=attachment)


async def serve(spec: Spec, line: OwnerLine) -> None:
    """Until told to stop, or the engine is dead for good. Raises what a start fails with."""
    args = argparse.Namespace(**json.loads(spec.args))
    place, directory = Place(spec.index, spec.count), Path(spec.directory)
    load_plugins(args)
    if args.disable_access_log_for_endpoints:
        hide_from_access_log(args.disable_access_log_for_endpoints.split(","))
    table = FrontTable(directory / "table", spec.count)
    table.set(spec.index, Column.PID, os.getpid())
    shared = Shared(table, spec.index, directory)
    app = build_app(args, shared)
    engines = Engines(place, table, directory)

    def start(progress: StartProgress) -> AsyncLLM:
        shared.readiness.engine, engine = engines.attach(progress)
        return engine

    async def install(engine: AsyncLLM) -> None:
        engine.start_reading()  # whoever records the steps hears of others' requests, too
        await init_app_state(engine, app.state, args)
        freeze_heap()
        line.tell(Serving(shared.readiness.engine, app.state.openai_serving_models.names))

    life = EngineLife(app.state, start, install, args.max_engine_restarts, reports=place.is_recorder)
    server = FrontServer(
        http_config(app, args),
        life.run(),
        shared.in_flight,
        args.shutdown_timeout,
        app.state.connections,
        table=table,
        front=spec.index,
    )
    loop = asyncio.get_running_loop()
    threading.Thread(target=_listen, args=(line, engines, server, loop), daemon=True, name="owner").start()
    beating = asyncio.create_task(_beat(table, spec.index))
    try:
        with socket.socket(fileno=spec.listener) as listener:
            listener.set_inheritable(False)
            await server.run_until_stopped(listener)
    finally:
        beating.cancel()
        life.shutdown()


async def _beat(table: FrontTable, front: int) -> None:
    """While the loop that serves users goes round."""
    while True:
        table.add(front, Column.BEATS, 1)
        await asyncio.sleep(_BEAT_SECONDS)


def _listen(line: OwnerLine, engines: Engines, server: FrontServer, loop: asyncio.AbstractEventLoop) -> None:
    """To the owner, in a thread of its own, until it is gone."""
    try:
        for message in line:
            if isinstance(message, NextEngine | Lost):
                engines.hear(message)
            elif isinstance(message, Stop):
                with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                    loop.call_soon_threadsafe(server.hurry if message.at_once else server.begin_to_stop)
    finally:
        os._exit(1)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = OwnerLine(socket.socket(fileno=0))
    spec = next(iter(line), None)
    if not isinstance(spec, Spec):
        return 1
    try:
        uvloop.run(serve(spec, line))
    except START_ERRORS as error:
        logger.debug("cannot start", exc_info=True)
        line.tell(Failed(str(error)))
    except Exception as error:
        logger.exception("this front fails")
        line.tell(Failed(f"{type(error).__name__}: {error}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
