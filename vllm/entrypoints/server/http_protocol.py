"""HTTP/1.1 on a connection, with bounds on what may arrive before, within and around a body.

The parser (httptools) keeps a header until it is whole, so a header without an end would be kept without an end.
Here bytes that are no body are counted as they arrive: past the bound the answer is 431 and the connection is
closed. A connection that does not finish its headers in time is closed too; one that does not finish a body is answered
408. How many connections there are is bounded by `connections`. Trailers are dropped.

An answer that has begun owns its connection. What comes meanwhile and is no HTTP, or too much of it, is not answered:
the answer goes on to its end, and the connection closes.

What a client still sends after its answer is read and dropped for a moment, since closing at once could cost it the
answer. A connection whose time is over gets one more look before it is closed: where the loop, or the whole process,
stood still, a request may have come in time and wait to be read.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vllm.entrypoints.server.connections import Connections

HEADER_SECONDS = 30
DEFAULT_BODY_SECONDS = 60.0
LINGER_SECONDS = 2
LAST_LOOK_SECONDS = 0.05
ONLY_FOR_PROBES = "only_for_probes"
"""Set in a scope's `state` where the connection is one too many for anything else."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds; `with_bounds` makes the class for a server."""

    max_header_bytes = 64 << 10
    body_seconds = DEFAULT_BODY_SECONDS
    all_connections = Connections()

    @classmethod
    def with_bounds(
        cls, max_header_bytes: int, body_seconds: float, connections: Connections
    ) -> type[BoundedHttpProtocol]:
        """body_seconds: from the end of the headers to that of the body; 0: no limit."""
        bounds = {"max_header_bytes": max_header_bytes, "body_seconds": body_seconds, "all_connections": connections}
        return type(cls.__name__, (cls,), bounds)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opening: asyncio.Task[None] | None = None
        """What makes the connection, TLS handshake included, while there is no transport."""
        self._overhead = 0
        self._body_bytes = 0
        self._in_body = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_header_timer()
        self.all_connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all_connections.remove(self)
        self._stop_header_timer()
        self._stop_body_timer()
        self._stop_lingering()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: a request that is not whole by now is not waited for."""
        if not self._has_nothing_to_answer() and self._drop_unfinished():
            self.transport.close()
        else:
            super().shutdown()

    def give_up(self) -> None:
        """Close at once: the place is needed."""
        self._refused = True
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._overhead += len(data)
        if not self._in_body and self._header_timer is None:
            self._start_header_timer()
        super().data_received(data)
        if self._overhead > self.max_header_bytes + self._body_bytes and not self.transport.is_closing():
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, f"The headers are larger than {self.max_header_bytes} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._has_nothing_to_answer():
            self.all_connections.wait(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._stop_header_timer()
        self._start_body_timer()
        if self.all_connections.is_for_probes(self):
            self.scope["state"][ONLY_FOR_PROBES] = True
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
        self._stop_body_timer()
        self._stop_lingering()
        super().on_message_complete()
        if not self._has_nothing_to_answer():
            self.all_connections.answer(self)

    def on_response_complete(self) -> None:
        if self._refused and not self.pipeline:
            self.transport.close()
        super().on_response_complete()
        if self._has_nothing_to_answer():
            self.all_connections.wait(self)

    def pause_writing(self) -> None:
        """Its client does not read."""
        self.all_connections.wait(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        if not self._has_nothing_to_answer():
            self.all_connections.answer(self)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """What arrives until then takes the timer back, as it always does."""
        self.timeout_keep_alive_task = self.loop.call_later(LAST_LOOK_SECONDS, super().timeout_keep_alive_handler)

    def _has_nothing_to_answer(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Read no more. What is wrong is said where nothing else is to be answered on this connection."""
        if self._refused:
            return
        self._refused = True
        self._stop_header_timer()
        if self._has_nothing_to_answer() or self._drop_unfinished():
            self.transport.write(_raw_error(status, message))
            self._linger()

    def _drop_unfinished(self) -> bool:
        """Forget a request that has no whole body and no answer yet; whether there is nothing else to answer."""
        cycle: RequestResponseCycle = self.cycle
        if not cycle.more_body or cycle.response_started:
            return False
        if self.pipeline:  # others go before it
            self.pipeline.popleft()
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _linger(self) -> None:
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _stop_lingering(self) -> None:
        _stop(self._linger_timer)
        self._linger_timer = None

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_without_headers)

    def _close_without_headers(self) -> None:
        self._header_timer = self.loop.call_later(LAST_LOOK_SECONDS, self.transport.close)

    def _stop_header_timer(self) -> None:
        _stop(self._header_timer)
        self._header_timer = None

    def _start_body_timer(self) -> None:
        if self.body_seconds:
            self._body_timer = self.loop.call_later(self.body_seconds, self._look_at_body)

    def _look_at_body(self) -> None:
        """Time in which nothing is read here is no fault of the client's."""
        if self.flow.read_paused:
            self._start_body_timer()
        else:
            self._body_timer = self.loop.call_later(LAST_LOOK_SECONDS, self._refuse_body)

    def _refuse_body(self) -> None:
        message = f"The body did not arrive within {self.body_seconds:g} seconds."
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, message)

    def _stop_body_timer(self) -> None:
        _stop(self._body_timer)
        self._body_timer = None


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _raw_error(status: HTTPStatus, message: str) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": int(status)}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
