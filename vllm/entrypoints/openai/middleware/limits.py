"""Sizes at the edge: header bytes and count (431), body bytes (413). What a body holds is checked where it is read."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.openai.errors import error, error_json

DEFAULT_MAX_BODY_BYTES = 32 << 20
DEFAULT_MAX_HEADER_BYTES = 64 << 10
DEFAULT_MAX_HEADERS = 256


class BodyTooLarge(HTTPException):
    """Raised to whoever reads the body."""

    def __init__(self, limit: int) -> None:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        super().__init__(status, f"The body is larger than {limit} bytes.")


class LimitsMiddleware:
    """Refuses by the declared length at once, and by the received length while it is read."""

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_header_bytes: int = DEFAULT_MAX_HEADER_BYTES,
        max_headers: int = DEFAULT_MAX_HEADERS,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._headers_too_large(scope):
            await _refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Headers are too large.", scope, receive, send)
        elif _declared_length(scope) > self._max_body_bytes:
            too_large = BodyTooLarge(self._max_body_bytes)
            await _refuse(HTTPStatus(too_large.status_code), too_large.detail, scope, receive, send)
        else:
            await self._app(scope, self._counted(receive), send)

    def _headers_too_large(self, scope: Scope) -> bool:
        headers = scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers)
        return len(headers) > self._max_headers or size > self._max_header_bytes

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise BodyTooLarge(self._max_body_bytes)
            return message

        return receive_counted


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(status: HTTPStatus, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_json(error(status, "BadRequestError", message), scope)
    await response(scope, receive, send)
