"""Requests are read as strict JSON: no NaN or infinity, no lone surrogates, numbers and depth within bounds.

What the standard library lets through of these would come up as an error much later, far from whoever sent it. Depth is
bounded for all that walks a request, or writes parts of it into an answer: schemas, templates, serialisers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from vllm.entrypoints.model_json import MAX_DEPTH
from vllm.sampling_params import is_deeper


def read_json(text: bytes) -> Any:
    """Raises json.JSONDecodeError for what is not strict JSON."""
    try:
        value = msgspec.json.decode(text)
        is_flat = text.count(b"[") + text.count(b"{") <= MAX_DEPTH
        if is_flat or not is_deeper(value, MAX_DEPTH):
            return value
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    except RecursionError:
        pass
    raise json.JSONDecodeError(f"it is nested more than {MAX_DEPTH} levels deep", "", 0)


class StrictRequest(Request):
    async def json(self) -> Any:
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Bodies are taken as they are, without a Content-Encoding.")
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read so. Use as the `route_class` of a router."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
