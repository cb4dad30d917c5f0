"""How the body of a request becomes what a route is given: read whole, counted, decoded and validated in one place.

The event loop streams to everybody else meanwhile, so whatever is larger than `INLINE_BYTES` is decoded and validated
in a thread. There is one such thread: several would hold the interpreter in turns, and finish no sooner. What it
holds without a pause is short, since the number of values is bounded first (`json_counts`).
"""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from vllm.entrypoints.openai.strict_json import read_json
from vllm.entrypoints.server.json_counts import MAX_ITEMS

T = TypeVar("T")

INLINE_BYTES = 32 << 10
CLIENT_CLOSED_REQUEST = 499
LARGEST_BYTES = 32 << 20
_LEAST_BYTES = 4 << 20
_BYTES_PER_TOKEN = 32


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """max_bytes: of a body. max_items: JSON values of every kind in it."""

    max_bytes: int = LARGEST_BYTES
    max_items: int = MAX_ITEMS

    @classmethod
    def of_model(cls, max_bytes: int | None, max_model_len: int, *, takes_images: bool) -> BodyBounds:
        """max_bytes: what the user says, if anything. max_model_len: in tokens; a prompt of so many token ids fits."""
        if max_bytes is None:
            by_length = min(max(_BYTES_PER_TOKEN * max_model_len, _LEAST_BYTES), LARGEST_BYTES)
            max_bytes = LARGEST_BYTES if takes_images else by_length
        return cls(max_bytes, MAX_ITEMS + max_model_len)


class BodyTooLarge(HTTPException):
    """Raised to whoever reads the body."""

    def __init__(self, limit: int) -> None:
        super().__init__(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {limit} bytes.")


class BodyReader:
    """Of one application. bounds: those of its model, once that is known; until then no request is answered."""

    def __init__(self, bounds: BodyBounds) -> None:
        self.bounds = bounds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="body")

    async def read(self, text: bytes, make: Callable[[Any], T]) -> T:
        """What `make` makes of the JSON value. Raises BodyTooLarge, and as `strict_json.read_json` and `make` do."""
        if len(text) > self.bounds.max_bytes:
            raise BodyTooLarge(self.bounds.max_bytes)

        def work() -> T:
            return make(read_json(text, self.bounds.max_items))

        if len(text) <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class ReadRequest(Request):
    """A request whose body was read. To FastAPI the body is what was made of it, which passes its own validation."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"null"  # whatever is not empty is asked for by `json`

    async def json(self) -> Any:
        return self._value


class StrictRoute(APIRoute):
    """A route whose body is read so, by the `BodyReader` at `app.state.bodies`. Use as a router's `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if not self.dependant.body_params:
            return handler
        (parameter,) = self.dependant.body_params
        hints = typing.get_type_hints(self.endpoint, include_extras=True)
        validate = TypeAdapter(hints[parameter.name]).validate_python

        async def handle(request: Request) -> Response:
            _check_headers(request)
            try:
                value = await request.app.state.bodies.read(await request.body(), validate)
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except json.JSONDecodeError as error:
                fault = {"type": "json_invalid", "loc": ("body",), "msg": error.msg, "ctx": {"error": error.msg}}
                raise RequestValidationError([fault]) from None
            except ValidationError as error:
                raise RequestValidationError(_located(error)) from None
            return await handler(ReadRequest(request, value))

        return handle


def _located(error: ValidationError) -> list[dict[str, Any]]:
    """Its faults as FastAPI has them."""
    faults = error.errors(include_url=False, include_input=False)
    return [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]


def _check_headers(request: Request) -> None:
    """Checked before the body is read: a form or a bare text gets an answer that says what is wrong."""
    media_types = {value.partition(";")[0].strip().lower() for value in request.headers.getlist("content-type")}
    if media_types != {"application/json"}:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "The Content-Type of the request must be application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Bodies are taken as they are, without a Content-Encoding.")
