"""The id of a request: the client's `X-Request-Id` if it is presentable.

It is kept in `scope["state"]["request_id"]`, where whoever chooses another one puts that. The id names the response and
the log lines. It is never a key: the engine is given an id of its own for each generation, so two requests that bring
the same id share nothing.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PRESENTABLE = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")


def presentable_id(text: str) -> str | None:
    """`text` if it can stand in responses, headers and logs."""
    return text if _PRESENTABLE.fullmatch(text.encode("utf-8", "replace")) else None


def random_id() -> str:
    return uuid.uuid4().hex


class RequestIdMiddleware:
    """respond: also send the id back, as a header of the response."""

    def __init__(self, app: ASGIApp, respond: bool = False) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _from_headers(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if not self._respond:
            await self._app(scope, receive, send)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = scope["state"]["request_id"] or random_id()
            await send(message)

        await self._app(scope, receive, send_with_id)


def _from_headers(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PRESENTABLE.fullmatch(value):
            return str(value, "ascii")
    return None
