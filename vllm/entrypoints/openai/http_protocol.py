"""HTTP/1.1 on a connection, with bounds on what may arrive before and around a body.

The parser (httptools) keeps a header until it is whole, so a header without an end would be kept without an end.
Here bytes that are no body are counted as they arrive: past the bound the answer is 431 and the connection is
closed. A connection that does not finish its headers in time is closed too. Trailers are dropped.

What a client still sends after its answer is read and dropped for a moment, since closing at once could cost it the
answer. A connection whose time is over gets one more look before it is closed: where the loop, or the whole process,
stood still, a request may have come in time and wait to be read.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 30
LINGER_SECONDS = 2
LAST_LOOK_SECONDS = 0.05


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds; `with_bounds` makes the class for a server."""

    max_header_bytes = 64 << 10

    @classmethod
    def with_bounds(cls, max_header_bytes: int) -> type[BoundedHttpProtocol]:
        return type(cls.__name__, (cls,), {"max_header_bytes": max_header_bytes})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._overhead = 0
        self._body_bytes = 0
        self._in_body = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_lingering()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._overhead += len(data)
        if not self._in_body and self._header_timer is None:
            self._start_header_timer()
        super().data_received(data)
        if self._overhead > self.max_header_bytes + self._body_bytes and not self.transport.is_closing():
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._stop_header_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)
        if self.cycle.response_complete and self._linger_timer is None:
            self._linger()

    def on_message_complete(self) -> None:
        self._overhead = self._body_bytes = 0
        self._in_body = False
        self._stop_lingering()
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """What arrives until then takes the timer back, as it always does."""
        self.timeout_keep_alive_task = self.loop.call_later(LAST_LOOK_SECONDS, super().timeout_keep_alive_handler)

    def _refuse_headers(self) -> None:
        """With a request under way nothing can be said: its answer owns the connection."""
        if not self._in_body and (self.cycle is None or self.cycle.response_complete):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            message = f"The headers are larger than {self.max_header_bytes} bytes."
            self.transport.write(_raw_error(status, message))
            self._refused = True
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _stop_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_without_headers)

    def _close_without_headers(self) -> None:
        self._header_timer = self.loop.call_later(LAST_LOOK_SECONDS, self.transport.close)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def _raw_error(status: HTTPStatus, message: str) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": int(status)}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
