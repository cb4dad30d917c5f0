"""The engine behind a server, from its start to its end, and to its next start.

The server listens before its engine runs, so a start happens in a thread while /health answers with its progress. An
engine that dies is either the end of the server, or, with --max-engine-restarts, replaced by a new one: its open
requests are told, the others are answered 503 until the new one runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, PlatformCollector, ProcessCollector
from starlette.datastructures import State

from vllm.engine.processes.startup import StartProgress
from vllm.logger import init_logger

logger = init_logger(__name__)

T = TypeVar("T")

LIFE_REGISTRY = CollectorRegistry()
READY = Gauge("vllm:engine_ready", "1 while requests are taken.", registry=LIFE_REGISTRY, multiprocess_mode="min")
ProcessCollector(registry=LIFE_REGISTRY)
PlatformCollector(registry=LIFE_REGISTRY)
GCCollector(registry=LIFE_REGISTRY)
RESTARTS = Counter("vllm:engine_restarts", "Engines that died and were replaced.", registry=LIFE_REGISTRY)
CHECK_SECONDS = 0.25
_CANCEL_SECONDS = 2.0


class Readiness:
    """Whether requests are taken. Kept as `app.state.readiness`; until `open` every answer is 503."""

    def __init__(self) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        return self._is_open

    def open(self) -> None:
        self._is_open = True
        READY.set(1)

    def close(self) -> None:
        """A start begins."""
        self._is_open = False
        self.progress = StartProgress()
        READY.set(0)


class Mortal(Protocol):
    """An engine, or a core, of which only its end concerns."""

    @property
    def errored(self) -> bool: ...

    @property
    def dead_error(self) -> BaseException | None: ...

    def shutdown(self) -> None: ...


E = TypeVar("E", bound=Mortal)


class EngineLife(Generic[E]):
    """Starts, watches, restarts and ends the engine of one server.

    start(progress) makes an engine, blocking; install(engine) makes the server use it. reports: whether ends are logged
    and counted here; of several processes that follow one engine, one does.
    """

    def __init__(
        self,
        state: State,
        start: Callable[[StartProgress], E],
        install: Callable[[E], Awaitable[None]],
        max_restarts: int = 0,
        *,
        reports: bool = True,
    ) -> None:
        self._readiness: Readiness = state.readiness
        self._start = start
        self._install = install
        self._max_restarts = max_restarts
        self._reports = reports
        self.engine: E | None = None

    async def run(self) -> None:
        """Returns when the engine is dead for good. Raises what a start fails with; cancelled, calls off a start."""
        engine = await self._bring_up()
        for restart in range(1, self._max_restarts + 1):
            await died(engine, reports=self._reports)
            if self._reports:
                logger.error("the engine is dead and is started anew (%d of %d)", restart, self._max_restarts)
                RESTARTS.inc()
            self._readiness.close()
            await asyncio.to_thread(engine.shutdown)
            engine = await self._bring_up()
        await died(engine, reports=self._reports)

    def shutdown(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()

    async def _bring_up(self) -> E:
        progress = self._readiness.progress
        started = in_thread(lambda: self._start(progress))
        try:
            engine = self.engine = await asyncio.shield(started)
        except asyncio.CancelledError:
            progress.cancel()
            with contextlib.suppress(Exception):  # what is called off may fail as it likes
                self.engine = await asyncio.wait_for(started, _CANCEL_SECONDS)
            raise
        await self._install(engine)
        return engine


async def died(engine: Mortal, *, reports: bool = True) -> None:
    """Returns when the engine is dead, having said why."""
    while not engine.errored:
        await asyncio.sleep(CHECK_SECONDS)
    if reports:
        logger.error("the engine is dead: %s", engine.dead_error)


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `work`, done in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            outcome: tuple[Callable[[Any], None], Any] = (future.set_exception, error)
        else:
            outcome = (future.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True, name="engine-start").start()
    return future
