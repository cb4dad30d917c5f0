"""The HTTP server of one of several fronts: it is stopped by its owner, and takes connections by turns.

All fronts wait at the one socket. Whoever wakes first could take a whole burst, and would keep it, since connections
are kept alive. So a front that has more connections than another leaves a new one to that for a moment, and takes it
after all where the other is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from vllm.engine.processes.front_table import Column, FrontTable
from vllm.entrypoints.server.launcher import DrainingServer
from vllm.logger import init_logger

logger = init_logger(__name__)

_PATIENCE_SECONDS = 0.001
_FAULT_SECONDS = 1.0


class FrontServer(DrainingServer):
    """table: of all fronts; this is `front` among them."""

    def __init__(self, *args: Any, table: FrontTable, front: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table, self._front = table, front
        self._accepting: asyncio.Task[None] | None = None
        self._opening: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the owner's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listener in sockets or ():
            listener.setblocking(False)
            self._accepting = asyncio.create_task(self._accept(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await _until_readable(listener)
            if self._has_more_than_others():
                await asyncio.sleep(_PATIENCE_SECONDS)
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):  # another front was faster, or the client left
                continue
            except OSError as error:
                logger.warning("a connection cannot be accepted: %s", error)
                await asyncio.sleep(_FAULT_SECONDS)
                continue
            task = asyncio.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _has_more_than_others(self) -> bool:
        self._table.set(self._front, Column.CONNECTIONS, len(self.server_state.connections) + len(self._opening))
        counts = self._table.column(Column.CONNECTIONS)
        return counts[self._front] > min(counts)

    async def _open(self, connection: socket.socket) -> None:
        """A connection that fails meanwhile, in its TLS handshake or before, is its client's matter."""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


async def _until_readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(listener, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(listener)
