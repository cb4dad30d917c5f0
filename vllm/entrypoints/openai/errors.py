"""From exceptions to error bodies: one table for every route, for plain answers and for streams.

A client's mistake carries its own message. Everything else answers with a fixed text: messages of unexpected
exceptions can hold paths, addresses or other requests' data, so they go to the log only.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import jinja2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.types import Scope

from vllm.engine.processes.startup import StartProgress
from vllm.entrypoints.openai.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.openai.protocol.forms import CHAT_FORM, COMPLETION_FORM
from vllm.entrypoints.openai.protocol.messages import messages_error
from vllm.entrypoints.server.in_flight import RequestTimedOut, ServerShutdown
from vllm.entrypoints.utils import DeadlineExceeded
from vllm.exceptions import (
    EngineDeadError,
    EngineGenerateError,
    QueueFullError,
    VLLMClientError,
    VLLMNotFoundError,
    VLLMValidationError,
)
from vllm.logger import init_logger

logger = init_logger(__name__)

RETRY_AFTER_SECONDS = 1
_MESSAGES = "/v1/messages"
_MAX_FAULTS = 5
_MAX_MESSAGE = 2000
_MAX_PLACE = 64
_HTTP_TYPES = {
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BadRequestError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
}


def error(status: HTTPStatus, type: str, message: str, param: str | None = None) -> ErrorResponse:
    return ErrorResponse(error=ErrorInfo(message=message[:_MAX_MESSAGE], type=type, param=param, code=int(status)))


def error_from(exception: BaseException) -> ErrorResponse:
    """What the client is told of `exception`. Unexpected ones are logged here, whole."""
    if isinstance(exception, VLLMNotFoundError):
        return error(HTTPStatus.NOT_FOUND, "NotFoundError", str(exception), exception.parameter)
    if isinstance(exception, VLLMValidationError):
        return error(HTTPStatus.BAD_REQUEST, "BadRequestError", str(exception), exception.parameter)
    if isinstance(exception, VLLMClientError):
        return error(HTTPStatus.BAD_REQUEST, "BadRequestError", str(exception))
    if isinstance(exception, RequestValidationError):
        return error(HTTPStatus.BAD_REQUEST, _validation_type(exception), *_validation_faults(exception))
    if isinstance(exception, HTTPException):
        status = HTTPStatus(exception.status_code)
        return error(status, _HTTP_TYPES.get(status, status.phrase), str(exception.detail or status.phrase))
    if isinstance(exception, DeadlineExceeded):
        return error(HTTPStatus.BAD_REQUEST, "BadRequestError", "The chat template took too long.", "chat_template")
    if isinstance(exception, jinja2.TemplateError):
        message = f"The chat template refuses this conversation: {exception}"
        return error(HTTPStatus.BAD_REQUEST, "BadRequestError", message, "messages")
    if isinstance(exception, NotImplementedError):
        return error(HTTPStatus.NOT_IMPLEMENTED, "NotImplementedError", str(exception))
    if isinstance(exception, QueueFullError):
        return error(HTTPStatus.TOO_MANY_REQUESTS, "RateLimitError", str(exception))
    if isinstance(exception, ServerShutdown):
        return error(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "The server is shutting down.")
    if isinstance(exception, RequestTimedOut):
        return error(HTTPStatus.GATEWAY_TIMEOUT, "RequestTimeoutError", "The request took longer than it may.")
    if isinstance(exception, EngineGenerateError):
        return error(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", str(exception))
    if isinstance(exception, EngineDeadError):
        return error(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "The engine is not running.")
    logger.error("unexpected error", exc_info=exception)
    return error(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", "The server failed on this request.")


def _validation_faults(exception: RequestValidationError) -> tuple[str, str | None]:
    """Each fault as "field: what is wrong", without the value: it may be long, secret or not printable."""
    faults = [_validation_fault(fault) for fault in exception.errors()[:_MAX_FAULTS]]
    return "; ".join(message for message, _ in faults), faults[0][1] if faults else None


def _validation_type(exception: RequestValidationError) -> str:
    """As vLLM has it: a check of ours says "BadRequestError", a field of the wrong form "Bad Request"."""
    causes = [fault.get("ctx", {}).get("error") for fault in exception.errors()[:1]]
    return "BadRequestError" if causes and isinstance(causes[0], VLLMValidationError) else "Bad Request"


def _validation_fault(fault: dict[str, Any]) -> tuple[str, str | None]:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, VLLMValidationError):
        return str(cause), cause.parameter
    if fault["type"] == "json_invalid":
        return f"The body is not valid JSON: {cause}", None
    place = ".".join(str(part)[:_MAX_PLACE] for part in _fields_of(fault["loc"]))
    return (f"{place}: {fault['msg']}", place) if place else (str(fault["msg"]), None)


def _fields_of(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without what no client wrote: the body as such, and which form of it was read."""
    fields = place[1:] if place[:1] == ("body",) else place
    return fields[1:] if fields[:1] in ((CHAT_FORM,), (COMPLETION_FORM,)) else fields


def error_json(response: ErrorResponse, scope: Scope) -> JSONResponse:
    """In the shape of the API that the path of `scope` belongs to."""
    status = response.error.code
    headers: dict[str, str] = {}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    is_messages = get_route_path(scope).startswith(_MESSAGES)
    body = messages_error(response) if is_messages else response.model_dump()
    return JSONResponse(body, status_code=status, headers=headers)


def not_ready_json(progress: StartProgress) -> JSONResponse:
    """503 while the engine starts; beside the error, `startup` has the progress for programs."""
    message = f"The engine is starting: {progress}."
    response = error(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", message)
    body = {**response.model_dump(), "startup": progress.to_dict()}
    return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def install_error_handlers(app: FastAPI) -> None:
    async def answer(request: Request, exception: Exception) -> JSONResponse:
        return error_json(error_from(exception), request.scope)

    async def answer_http(request: Request, exception: Exception) -> JSONResponse:
        response = error_json(error_from(exception), request.scope)
        response.headers.update(getattr(exception, "headers", None) or {})
        return response

    app.add_exception_handler(HTTPException, answer_http)
    for cls in (RequestValidationError, VLLMClientError, QueueFullError, ServerShutdown, RequestTimedOut, Exception):
        app.add_exception_handler(cls, answer)
