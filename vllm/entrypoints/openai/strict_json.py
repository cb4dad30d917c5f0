"""Request bodies are read as strict JSON: no NaN or infinity, no lone surrogates, numbers and depth within bounds.

What the standard library lets through of these would come up as an error much later, far from whoever sent it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
        except RecursionError:
            raise json.JSONDecodeError("it is nested too deeply", "", 0) from None


class StrictRoute(APIRoute):
    """A route whose body is read so. Use as the `route_class` of a router."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
