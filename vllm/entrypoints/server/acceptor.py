"""Takes the connections of a listening socket, and counts them from the first moment: also in their TLS handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable

from vllm.entrypoints.server.connections import Connections
from vllm.entrypoints.server.http_protocol import HEADER_SECONDS, BoundedHttpProtocol
from vllm.logger import init_logger

logger = init_logger(__name__)

_FAULT_SECONDS = 1.0


class Acceptor:
    """make_protocol: for each connection. context: of TLS, if it is on. before: awaited while a connection waits."""

    def __init__(
        self,
        make_protocol: Callable[[], BoundedHttpProtocol],
        connections: Connections,
        context: ssl.SSLContext | None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._make_protocol = make_protocol
        self._connections = connections
        self._context = context
        self._before = before
        self._opening: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket) -> None:
        """listener: which listens already."""
        listener.setblocking(False)
        self._task = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Take no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task, *self._opening), timeout=0)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await _until_readable(listener)
            if self._before is not None:
                await self._before()
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):  # another process was faster, or the client left
                continue
            except OSError as error:
                logger.warning("a connection cannot be accepted: %s", error)
                await asyncio.sleep(_FAULT_SECONDS)
                continue
            task = asyncio.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        """A connection that fails meanwhile, in its TLS handshake or before, is its client's matter."""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol = self._make_protocol()
        protocol.opening = asyncio.current_task()
        self._connections.add(protocol)
        seconds = HEADER_SECONDS if self._context else None
        try:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=seconds
                )
        finally:
            protocol.opening = None
            if protocol.transport is None:
                self._connections.remove(protocol)
                connection.close()


async def _until_readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(listener, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(listener)
