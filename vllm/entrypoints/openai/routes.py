"""The routes: each a few lines from HTTP to a serving class and back.

State they read, all on `app.state`: engine_client, in_flight, metrics, serving_messages, and openai_serving_models,
_completion, _chat, _responses and _tokenization. It is put there by `api_server.init_app_state`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Discriminator, Tag
from starlette.exceptions import HTTPException

from vllm.entrypoints.openai.bodies import CLIENT_CLOSED_REQUEST, StrictRoute
from vllm.entrypoints.openai.errors import error, error_json, not_ready_json
from vllm.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    DeletedResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    ErrorResponse,
    ModelCard,
    ModelList,
    ResponsesRequest,
    ResponsesResponse,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)
from vllm.entrypoints.openai.protocol.forms import CHAT_FORM, COMPLETION_FORM, prompt_form
from vllm.entrypoints.openai.protocol.messages import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
    MessagesResponse,
)
from vllm.entrypoints.openai.protocol.responses import CountedInput
from vllm.entrypoints.openai.sse import Events, EventStream
from vllm.entrypoints.server.health import Health, engine_health, health_of
from vllm.entrypoints.server.in_flight import ClientDisconnected
from vllm.version import __version__

_FAILURES: dict[int | str, dict[str, Any]] = {
    int(status): {"model": ErrorResponse}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.NOT_IMPLEMENTED,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}

health_router = APIRouter()
dev_router = APIRouter()
"""Served with VLLM_SERVER_DEV_MODE alone."""
api_router = APIRouter(responses=_FAILURES, route_class=StrictRoute)


async def answer(request: Request, work: Coroutine[Any, Any, BaseModel | Events]) -> Response:
    """Bind `work` to the connection, and send what comes of it."""
    state = request.app.state
    in_flight = state.in_flight
    try:
        deadline = _deadline(request, state.request_timeout)
    except HTTPException:
        work.close()
        raise
    try:
        result = await in_flight.run(work, request.receive, deadline=deadline)
    except ClientDisconnected:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(result, ErrorResponse):
        return error_json(result, request.scope)
    if isinstance(result, Events):
        return EventStream(result, in_flight, deadline)
    return Response(result.model_dump_json(), media_type="application/json")


def _deadline(request: Request, limit: float) -> float | None:
    """The event loop's time at which the answer is given up. limit: the server's own, in seconds; 0: none.

    The header X-Request-Timeout may ask for less, never for more.
    """
    wanted = request.headers.get("x-request-timeout")
    seconds = limit or math.inf
    if wanted is not None:
        try:
            asked = float(wanted)
        except ValueError:
            asked = math.nan
        if not 0 < asked < math.inf:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "X-Request-Timeout must be a positive number of seconds.")
        seconds = min(seconds, asked)
    return None if seconds == math.inf else asyncio.get_running_loop().time() + seconds


@api_router.post("/v1/completions", response_model=CompletionResponse)
async def create_completion(request: CompletionRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_completion
    return await answer(raw_request, serving.create_completion(request, raw_request))


@api_router.post("/v1/chat/completions", response_model=ChatCompletionResponse)
async def create_chat_completion(request: ChatCompletionRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_chat
    return await answer(raw_request, serving.create_chat_completion(request, raw_request))


Invocation = Annotated[
    Annotated[CompletionRequest, Tag(COMPLETION_FORM)] | Annotated[ChatCompletionRequest, Tag(CHAT_FORM)],
    Discriminator(prompt_form),
]


@api_router.post("/invocations", response_model=ChatCompletionResponse | CompletionResponse)
async def invoke(request: Invocation, raw_request: Request) -> Response:
    """The one route that SageMaker asks for: a chat where there are `messages`, else a completion."""
    if isinstance(request, ChatCompletionRequest):
        return await create_chat_completion(request, raw_request)
    return await create_completion(request, raw_request)


@api_router.post("/v1/responses", response_model=ResponsesResponse)
async def create_response(request: ResponsesRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_responses
    return await answer(raw_request, serving.create_response(request))


@api_router.post("/v1/responses/input_tokens", response_model=CountedInput)
async def count_input_tokens(request: ResponsesRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_responses
    return await answer(raw_request, serving.count_input_tokens(request))


@api_router.get("/v1/responses/{response_id}", response_model=ResponsesResponse)
async def retrieve_response(response_id: str, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_responses
    return await answer(raw_request, serving.retrieve_response(response_id))


@api_router.delete("/v1/responses/{response_id}", response_model=DeletedResponse)
async def delete_response(response_id: str, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_responses
    return await answer(raw_request, serving.delete_response(response_id))


@api_router.post("/v1/responses/{response_id}/cancel", response_model=ResponsesResponse)
async def cancel_response(response_id: str, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_responses
    return await answer(raw_request, serving.cancel_response(response_id))


@api_router.post("/v1/messages", response_model=MessagesResponse)
async def create_message(request: MessagesRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.serving_messages
    return await answer(raw_request, serving.create_message(request))


@api_router.post("/v1/messages/count_tokens", response_model=CountTokensResponse)
async def count_tokens(request: CountTokensRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.serving_messages
    return await answer(raw_request, serving.count_tokens(request))


TokenizeRequest = Annotated[
    Annotated[TokenizeCompletionRequest, Tag(COMPLETION_FORM)] | Annotated[TokenizeChatRequest, Tag(CHAT_FORM)],
    Discriminator(prompt_form),
]


@api_router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(request: TokenizeRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_tokenization
    return await answer(raw_request, serving.create_tokenize(request))


@api_router.post("/detokenize", response_model=DetokenizeResponse)
async def detokenize(request: DetokenizeRequest, raw_request: Request) -> Response:
    serving = raw_request.app.state.openai_serving_tokenization
    return await answer(raw_request, serving.create_detokenize(request))


@api_router.get("/v1/models")
async def show_models(raw_request: Request) -> ModelList:
    models: ModelList = raw_request.app.state.openai_serving_models.list_models()
    return models


@api_router.get("/v1/models/{model:path}")
async def show_model(model: str, raw_request: Request) -> ModelCard:
    card: ModelCard = raw_request.app.state.openai_serving_models.show(model)
    return card


@health_router.get("/health", response_class=Response)
@health_router.get("/ping", response_class=Response)
@health_router.post("/ping", response_class=Response)
async def health(raw_request: Request) -> Response:
    """Readiness: 200 while requests are taken; 503 when the engine starts (with its progress), or is dead or stuck,
    or when the server drains."""
    state = raw_request.app.state
    found = await health_of(state)
    if found is Health.STARTING:
        return not_ready_json(state.readiness.progress)
    return _answer_to_probe(raw_request, found)


@health_router.get("/live", response_class=Response)
async def live(raw_request: Request) -> Response:
    """Liveness: 200 while the server can become or stay ready, also during a start and a drain; 503 when the engine
    is dead or stuck."""
    state = raw_request.app.state
    found = await engine_health(state) if state.readiness.ready else Health.READY
    return _answer_to_probe(raw_request, found)


def _answer_to_probe(request: Request, found: Health) -> Response:
    if found is Health.READY:
        return Response()
    response = error(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", found.message)
    return error_json(response, request.scope)


@dev_router.post("/reset_prefix_cache", response_class=Response)
async def reset_prefix_cache(
    raw_request: Request, reset_running_requests: bool = False, reset_external: bool = False
) -> Response:
    """Forget cached prefixes, with `reset_external` those in the KV store too; requests that run keep their blocks."""
    client = raw_request.app.state.engine_client
    await client.reset_prefix_cache(reset_running_requests, reset_external)
    return Response()


@health_router.get("/load")
async def load(raw_request: Request) -> dict[str, int]:
    """Requests being answered."""
    return {"server_load": raw_request.app.state.in_flight.load}


@health_router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@health_router.get("/metrics", response_class=Response)
async def metrics(raw_request: Request) -> Response:
    """Prometheus text: the engine's metrics and those of HTTP. Names are the same in every format."""
    encode, media_type = choose_encoder(_formats_that_keep_names(raw_request.headers.get("accept", "")))
    return Response(encode(raw_request.app.state.metrics), headers={"Content-Type": media_type})


def _formats_that_keep_names(accept: str) -> str:
    """Those of an Accept header that take names as they are. In others the encoder writes `_` for the colon of
    `vllm:`; without any it writes text of version 0.0.4, which keeps names too."""
    formats = accept.split(",")
    return ",".join(each for each in formats if "escaping=allow-utf-8" in each.replace(" ", "").split(";"))
