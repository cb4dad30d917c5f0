"""API keys. Without one, nothing is reachable but the paths listed here: a new route is closed until somebody opens
it.

The path compared is the one the router dispatches on (`scope["path"]` less the root path), and never one built from
headers. A path that is spelt in any other way is not in the list, and so needs a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm.entrypoints.openai.errors import error, error_json

OPEN_PATHS = frozenset({"/", "/dashboard", "/health", "/live", "/metrics", "/ping"})
"""The page at / and /dashboard is the same for everybody and holds nothing; its data and its chat need a key."""


class AuthenticationMiddleware:
    """Lets through requests that bring one of the keys, and those for `OPEN_PATHS`.

    A key comes as `Authorization: Bearer <key>` or, as Anthropic's clients send it, as `X-Api-Key: <key>`; not as both.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        if not keys or not all(keys):
            raise ValueError("an API key must not be empty")
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            response = error_json(error(HTTPStatus.UNAUTHORIZED, "AuthenticationError", "Unauthorized"), scope)
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_open(self, scope: Scope) -> bool:
        return scope["type"] == "http" and get_route_path(scope) in OPEN_PATHS

    def _has_key(self, scope: Scope) -> bool:
        """Every key is compared whole and in constant time; digests hide their lengths."""
        given = [pair for pair in scope.get("headers", ()) if pair[0] in (b"authorization", b"x-api-key")]
        if len(given) != 1:
            return False
        ((name, value),) = given
        scheme, _, key = (b"bearer", b"", value) if name == b"x-api-key" else value.partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
