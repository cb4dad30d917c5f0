"""While the engine starts, every path is answered 503 with the progress of the start, but for those listed here."""

from __future__ import annotations

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm.entrypoints.openai.errors import not_ready_json
from vllm.entrypoints.server.engine_life import Readiness

SERVED_MEANWHILE = frozenset(
    {"/", "/dashboard", "/dashboard/data", "/health", "/ping", "/live", "/load", "/metrics", "/version"}
)


class ReadinessMiddleware:
    """A new route waits for the engine unless it is listed."""

    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self._app = app
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._readiness.ready or get_route_path(scope) in SERVED_MEANWHILE:
            await self._app(scope, receive, send)
        else:
            await not_ready_json(self._readiness.progress)(scope, receive, send)
