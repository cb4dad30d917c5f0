"""The trace that a client's headers name: kept for the engine, which makes the request's span a part of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm.engine.observe.tracing import CURRENT_TRACE, TRACE_HEADERS

_NAMES = {name.encode(): name for name in TRACE_HEADERS}


class TraceContextMiddleware:
    """Only where traces are sent; see --otlp-traces-endpoint."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = {_NAMES[name]: value.decode("latin-1") for name, value in scope.get("headers", ()) if name in _NAMES}
        token = CURRENT_TRACE.set(named or None)
        try:
            await self._app(scope, receive, send)
        finally:
            CURRENT_TRACE.reset(token)
