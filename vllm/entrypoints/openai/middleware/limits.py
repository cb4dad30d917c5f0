"""The edge: header bytes and count (431), body bytes (413), and the Host line that HTTP/1.1 asks for (400). What a body
holds is checked where it is read (`bodies`); how long it may take to arrive, on the connection (`http_protocol`).
"""

from __future__ import annotations

from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.openai.bodies import BodyReader, BodyTooLarge
from vllm.entrypoints.openai.errors import error, error_from, error_json
from vllm.entrypoints.openai.middleware.authentication import OPEN_PATHS
from vllm.entrypoints.server.http_protocol import ONLY_FOR_PROBES

DEFAULT_MAX_HEADER_BYTES = 64 << 10
DEFAULT_MAX_HEADERS = 256


class ServerFull(HTTPException):
    def __init__(self) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, "The server has as many connections as it can hold.")


class LimitsMiddleware:
    """Refuses by the declared length at once, and by the received length while the body is read.

    bodies: whose bounds hold.
    """

    def __init__(
        self,
        app: ASGIApp,
        bodies: BodyReader,
        max_header_bytes: int = DEFAULT_MAX_HEADER_BYTES,
        max_headers: int = DEFAULT_MAX_HEADERS,
    ) -> None:
        self._app = app
        self._bodies = bodies
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_body_bytes = self._bodies.bounds.max_bytes
        if self._headers_too_large(scope):
            await _refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Headers are too large.", scope, receive, send)
        elif scope.get("state", {}).get(ONLY_FOR_PROBES) and get_route_path(scope) not in OPEN_PATHS:
            response = error_json(error_from(ServerFull()), scope)
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
        elif not _names_one_host(scope):
            message = "The request must have exactly one Host header."
            await _refuse(HTTPStatus.BAD_REQUEST, message, scope, receive, send)
        elif _declared_length(scope) > max_body_bytes:
            await error_json(error_from(BodyTooLarge(max_body_bytes)), scope)(scope, receive, send)
        else:
            await self._app(scope, self._counted(receive, max_body_bytes), send)

    def _headers_too_large(self, scope: Scope) -> bool:
        headers = scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers)
        return len(headers) > self._max_headers or size > self._max_header_bytes

    def _counted(self, receive: Receive, max_body_bytes: int) -> Receive:
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_body_bytes:
                raise BodyTooLarge(max_body_bytes)
            return message

        return receive_counted


def _names_one_host(scope: Scope) -> bool:
    """As HTTP/1.1 asks for (RFC 9112, 3.2); older versions need not name any."""
    count = sum(name == b"host" for name, _ in scope["headers"])
    return count == 1 or (not count and bool(scope.get("http_version", "1.1") != "1.1"))


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(status: HTTPStatus, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_json(error(status, "BadRequestError", message), scope)
    await response(scope, receive, send)
