"""Server-sent events: a stream of them that can fail in order, and the response that sends it.

A request that fails before its first event is answered by a status; one that fails later ends its stream with an error
event (and `[DONE]` where the API has one). However a stream ends, its source is closed, which aborts the request in the
engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm.entrypoints.openai.errors import error_from
from vllm.entrypoints.openai.protocol import ErrorResponse
from vllm.entrypoints.openai.protocol.stream import error_events
from vllm.entrypoints.server.in_flight import ClientDisconnected, InFlight, RequestTimedOut, ServerShutdown

KEEP_ALIVE = b": keep-alive\n\n"
_FIRST_EVENT_SECONDS = 0.25


class Events(AsyncIterator[bytes]):
    """The events of `source`. Never raises once primed; `aclose` it when done. on_error: what a failure ends with."""

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        keep_alive: float = 0,
        on_error: Callable[[ErrorResponse], bytes] = error_events,
    ) -> None:
        self.on_error = on_error
        self._source = source
        self._keep_alive = keep_alive
        self._following: asyncio.Task[bytes | None] | None = None
        self._ended = False

    async def prime(self) -> Events:
        """Wait a little for the first event and raise if it fails. One that is slow to come is left to the stream."""
        try:
            if not await self._wait(_FIRST_EVENT_SECONDS):
                return self
            if failure := self._follow().exception():
                raise failure
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._keep_alive and not await self._wait(self._keep_alive):
                return KEEP_ALIVE
            event = await self._next()
        except Exception as exception:
            self._ended = True
            return self.on_error(error_from(exception))
        if event is None:
            self._ended = True
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        self._ended = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))
        await self._source.aclose()

    async def _next(self) -> bytes | None:
        if self._following is None:
            return await anext(self._source, None)
        following, self._following = self._following, None
        return await following

    def _follow(self) -> asyncio.Task[bytes | None]:
        if self._following is None:
            self._following = asyncio.ensure_future(anext(self._source, None))
        return self._following

    async def _wait(self, seconds: float) -> bool:
        done, _ = await asyncio.wait((self._follow(),), timeout=seconds)
        return bool(done)


class EventStream(Response):
    """Sends events until they end, the client is gone, or it is time to give up; see `InFlight.run`."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, in_flight: InFlight, deadline: float | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events
        self._in_flight = in_flight
        self._deadline = deadline
        in_flight.reserve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._in_flight.run(self._send_events(send), receive, started=True, deadline=self._deadline)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ServerShutdown, RequestTimedOut) as end:
            last = self._events.on_error(error_from(end))
            await send({"type": "http.response.body", "body": last, "more_body": False})
        except ClientDisconnected:
            return
        finally:
            self._in_flight.release()
            await self._events.aclose()

    async def _send_events(self, send: Send) -> None:
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
