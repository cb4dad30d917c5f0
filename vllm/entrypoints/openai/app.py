"""The application of a server: routes and middleware, and what they read once an engine runs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from starlette.datastructures import State
from starlette.middleware.cors import CORSMiddleware

from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.client import EngineClient
from vllm.engine.processes.startup import StartProgress
from vllm.entrypoints.openai import routes
from vllm.entrypoints.openai.bodies import LARGEST_BYTES, BodyBounds, BodyReader
from vllm.entrypoints.openai.dashboard import page_router
from vllm.entrypoints.openai.errors import install_error_handlers
from vllm.entrypoints.openai.middleware.access import HTTP_REGISTRY, AccessMiddleware
from vllm.entrypoints.openai.middleware.authentication import AuthenticationMiddleware
from vllm.entrypoints.openai.middleware.head import HeadMiddleware
from vllm.entrypoints.openai.middleware.limits import LimitsMiddleware
from vllm.entrypoints.openai.middleware.readiness import ReadinessMiddleware
from vllm.entrypoints.openai.middleware.request_id import RequestIdMiddleware
from vllm.entrypoints.openai.middleware.trace_context import TraceContextMiddleware
from vllm.entrypoints.openai.renderer import PromptRenderer
from vllm.entrypoints.openai.request_logger import RequestLogger
from vllm.entrypoints.openai.response_store import IN_MEMORY
from vllm.entrypoints.openai.serving_chat import OpenAIServingChat
from vllm.entrypoints.openai.serving_completion import OpenAIServingCompletion
from vllm.entrypoints.openai.serving_engine import ServingOptions
from vllm.entrypoints.openai.serving_messages import ServingMessages
from vllm.entrypoints.openai.serving_models import OpenAIServingModels
from vllm.entrypoints.openai.serving_responses import OpenAIServingResponses
from vllm.entrypoints.openai.serving_tokenization import OpenAIServingTokenization
from vllm.entrypoints.server.connections import Connections
from vllm.entrypoints.server.engine_life import LIFE_REGISTRY, Readiness
from vllm.entrypoints.server.in_flight import InFlight
from vllm.entrypoints.template_fit import NOT_SHOWN
from vllm.exceptions import VLLMError
from vllm.logger import init_logger
from vllm.version import __version__

if TYPE_CHECKING:
    from vllm.entrypoints.openai.fronts.shared import Shared

logger = init_logger("vllm.entrypoints.openai.api_server")

LISTENING = "listening on %s; /health is 503 and tells how far the start is until requests are taken"
SERVING = "serving %s on %s"

START_ERRORS = (ValueError, OSError, VLLMError)
"""What users can mend."""


def start_engine(args: argparse.Namespace, progress: StartProgress | None = None) -> Any:
    """An `AsyncLLM` made from the arguments. Blocks until it runs."""
    from vllm.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(engine_args(args), progress=progress)


def engine_args(args: argparse.Namespace) -> AsyncEngineArgs:
    """The engine's part; requests are logged by the server."""
    return AsyncEngineArgs.from_cli_args(argparse.Namespace(**{**vars(args), "enable_log_requests": False}))


@contextlib.asynccontextmanager
async def build_async_engine_client(args: argparse.Namespace) -> AsyncIterator[EngineClient]:
    """An `AsyncLLM` made from the arguments; shut down at the end."""
    engine_client = start_engine(args)
    try:
        yield engine_client
    finally:
        engine_client.shutdown()


def build_app(args: argparse.Namespace, shared: Shared | None = None) -> FastAPI:
    """Routes and middleware. Requests are answered 503 until `init_app_state` was called.

    shared: what one of several fronts has in common with the others.
    """
    documented = not args.disable_fastapi_docs
    app = FastAPI(
        title="vLLM",
        version=__version__,
        redirect_slashes=False,
        openapi_url="/openapi.json" if documented else None,
        docs_url="/docs" if documented else None,
        redoc_url="/redoc" if documented else None,
    )
    app.root_path = args.root_path
    app.state.shared = shared
    app.state.readiness = shared.readiness if shared else Readiness()
    app.state.in_flight = shared.in_flight if shared else InFlight()
    app.state.request_timeout = args.request_timeout
    app.state.connections = Connections()
    app.state.bodies = BodyReader(BodyBounds(args.max_body_bytes or LARGEST_BYTES))
    app.state.metrics = shared.metrics if shared else JoinedRegistry(HTTP_REGISTRY, LIFE_REGISTRY)
    app.include_router(routes.api_router)
    app.include_router(routes.health_router)
    if not args.disable_dashboard:
        app.include_router(page_router)
    if envs.VLLM_SERVER_DEV_MODE:
        app.include_router(routes.dev_router)
    install_error_handlers(app)
    _add_middleware(app, args)
    return app


def _add_middleware(app: FastAPI, args: argparse.Namespace) -> None:
    """From the inside out: what is added last is met first."""
    app.add_middleware(HeadMiddleware)
    app.add_middleware(ReadinessMiddleware, readiness=app.state.readiness)
    for name in args.middleware:
        _add_named_middleware(app, name)
    if args.api_key:
        app.add_middleware(AuthenticationMiddleware, keys=args.api_key)
    app.add_middleware(
        LimitsMiddleware,
        bodies=app.state.bodies,
        max_header_bytes=args.max_header_bytes,
        max_headers=args.max_header_count,
    )
    if args.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=args.allowed_origins,
            allow_credentials=args.allow_credentials,
            allow_methods=args.allowed_methods,
            allow_headers=args.allowed_headers,
        )
    if args.otlp_traces_endpoint:
        app.add_middleware(TraceContextMiddleware)
    app.add_middleware(RequestIdMiddleware, respond=args.enable_request_id_headers)
    app.add_middleware(AccessMiddleware)


def _add_named_middleware(app: FastAPI, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        middleware = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--middleware {name!r} cannot be imported: {error}") from None
    if inspect.isclass(middleware):
        app.add_middleware(middleware)  # type: ignore[arg-type]
    elif inspect.iscoroutinefunction(middleware):
        app.middleware("http")(middleware)
    else:
        raise ValueError(f"--middleware {name!r} is neither a class nor a coroutine function")


async def init_app_state(engine_client: EngineClient, state: State, args: argparse.Namespace) -> None:
    """Put on `state` what the routes read, and let requests in."""
    config = engine_client.model_config
    models = OpenAIServingModels(engine_client)
    renderer = PromptRenderer(
        engine_client.tokenizer,
        max_model_len=config.max_len,
        vocab_size=config.vocab_size,
        content_format=args.chat_template_content_format,
        default_template_kwargs=args.default_chat_template_kwargs,
        trust_request_template=args.trust_request_chat_template,
        images=engine_client.images,
    )
    if args.enable_auto_tool_choice and renderer.has_chat_template and not await renderer.shows_tools():
        logger.warning("tools %s", NOT_SHOWN)
    options = ServingOptions(
        return_tokens_as_token_ids=args.return_tokens_as_token_ids,
        enable_prompt_tokens_details=args.enable_prompt_tokens_details,
        enable_force_include_usage=args.enable_force_include_usage,
        response_role=args.response_role,
        sse_keep_alive_interval=args.sse_keep_alive_interval,
        enable_auto_tool_choice=args.enable_auto_tool_choice,
        tool_call_parser=args.tool_call_parser,
        tool_strict_level=args.tool_strict_level,
        reasoning_parser=args.reasoning_parser,
        exclude_tools_when_tool_choice_none=args.exclude_tools_when_tool_choice_none,
        strict_max_tokens=args.strict_max_tokens,
    )
    request_logger = RequestLogger(args.enable_log_requests, args.enable_log_outputs, args.max_log_len)
    defaults = engine_client.default_sampling_params
    shared = (engine_client, models, renderer, options, request_logger, defaults)
    in_common: Shared | None = getattr(state, "shared", None)
    state.engine_client = engine_client
    if in_common is None:
        state.metrics = JoinedRegistry(engine_client.metrics.registry, HTTP_REGISTRY, LIFE_REGISTRY)
    state.openai_serving_models = models
    state.openai_serving_completion = OpenAIServingCompletion(*shared)
    state.openai_serving_chat = OpenAIServingChat(*shared)
    if not hasattr(state, "bodies"):
        state.bodies = BodyReader(BodyBounds())
    takes_images = engine_client.images is not None
    if connections := getattr(state, "connections", None):
        connections.fit()
    state.bodies.bounds = BodyBounds.of_model(args.max_body_bytes, config.max_len, takes_images=takes_images)
    if not hasattr(state, "in_flight"):
        state.in_flight = InFlight()
    state.openai_serving_responses = OpenAIServingResponses(
        state.openai_serving_chat, state.in_flight, in_common.store_path if in_common else IN_MEMORY
    )
    state.serving_messages = ServingMessages(state.openai_serving_chat)
    state.openai_serving_tokenization = OpenAIServingTokenization(engine_client, models, renderer)
    if readiness := getattr(state, "readiness", None):
        readiness.open()


class JoinedRegistry:
    """Several registries in one exposition."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        for registry in self._registries:
            yield from registry.collect()
