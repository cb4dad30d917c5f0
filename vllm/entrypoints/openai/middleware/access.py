"""HTTP metrics: `http_requests_total` and `http_request_duration_seconds`, by route.

The route's template is the label, never the path a client sent, so the number of series is bounded.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HTTP_REGISTRY = CollectorRegistry()
REQUESTS = Counter("http_requests", "Requests answered.", ["handler", "method", "status"], registry=HTTP_REGISTRY)
DURATION = Histogram(
    "http_request_duration_seconds",
    "From the request's headers to the end of the answer.",
    ["handler", "method"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300),
    registry=HTTP_REGISTRY,
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_NO_ANSWER = 499


class AccessMiddleware:
    """Counts every answer; 499 stands for a client that left before there was one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _NO_ANSWER
        started = time.perf_counter()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except Exception:
            status = 500
            raise
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            handler = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(handler, method, f"{status // 100}xx").inc()
            DURATION.labels(handler, method).observe(time.perf_counter() - started)
