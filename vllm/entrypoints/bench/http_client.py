"""An HTTP/1.1 client that times each read as it comes out of the socket.

Nothing is decoded while a request runs: what arrived is kept with its time and read afterwards, so the client takes
little from a server on the same machine. Connections are kept and used again.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Exchange:
    """A response. reads: the pieces of the body, and when each came. Times are of time.perf_counter.

    sent: when the request was, before a connection was made where there was none to use again.
    """

    sent: float
    status: int = 0
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads)


class _Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.exchange = Exchange(0.0)
        self.is_open = True
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._ends_with_connection = True
        self._keep_alive = False

    async def ask(self, request: bytes, sent: float) -> Exchange:
        """Send a request, wait for the whole response. Raises ConnectionError if the connection ends before it."""
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._ends_with_connection = True
        self._keep_alive = False
        self.exchange = Exchange(sent)
        self.transport.write(request)
        try:
            await self._done
        except BaseException:
            self.close()
            raise
        if not self._keep_alive:
            self.close()
        return self.exchange

    def close(self) -> None:
        self.is_open = False
        self.transport.close()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.exchange.status and self._ends_with_connection:
            self.on_message_complete()
        self._fail(ConnectionError(f"the connection ended before the answer: {exc or 'closed by the server'}"))

    def _fail(self, error: ConnectionError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        self.exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.exchange.reads.append((self._now, body))

    def on_message_complete(self) -> None:
        self._keep_alive = self.is_open and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class HttpClient:
    """Requests to one server. headers: sent with each. Raises ValueError for a URL that is none."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"{base_url!r} is no URL of a server, such as http://127.0.0.1:8000")
        self.base_url = base_url.rstrip("/")
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._address = (url.hostname, url.port or (443 if self._ssl else 80))
        self._prefix = url.path.rstrip("/")
        fields = {"Host": url.netloc.rpartition("@")[2], "Content-Type": "application/json", **(headers or {})}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes) -> Exchange:
        """Raises OSError where no answer comes."""
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> Exchange:
        """Raises OSError where no answer comes."""
        return await self._ask("GET", path, b"")

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _ask(self, method: str, path: str, body: bytes) -> Exchange:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._fields}Content-Length: {len(body)}\r\n\r\n"
        request = head.encode("latin-1") + body
        sent = time.perf_counter()
        connection = self._take_idle()
        if connection is not None:
            try:
                return await self._ask_on(connection, request, sent)
            except ConnectionError:
                if connection.exchange.status:
                    raise
        return await self._ask_on(await self._connect(), request, sent)

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, *self._address, ssl=self._ssl)
        return connection

    async def _ask_on(self, connection: _Connection, request: bytes, sent: float) -> Exchange:
        exchange = await connection.ask(request, sent)
        if connection.is_open:
            self._idle.append(connection)
        return exchange
