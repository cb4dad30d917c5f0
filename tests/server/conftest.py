"""The server in two forms: the application in this process over a fake engine, and real servers in processes."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.openai.api_server import build_app, init_app_state
from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

BASE = "http://server"


def server_args(*words: str) -> argparse.Namespace:
    return parse_server_args(make_arg_parser(FlexibleArgumentParser()), ["fake/model", *words])


async def make_app(engine: FakeEngine, *words: str) -> FastAPI:
    args = server_args(*words)
    app = build_app(args)
    await init_app_state(engine, app.state, args)
    return app


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def make_client(engine: FakeEngine) -> AsyncIterator[Callable[..., Any]]:
    """make_client(*options): an HTTP client of an application with those options, over the fake engine."""
    clients: list[httpx.AsyncClient] = []

    async def make(*words: str, **kwargs: Any) -> httpx.AsyncClient:
        app = await make_app(engine, *words)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=BASE, **kwargs)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def http(make_client: Callable[..., Any]) -> httpx.AsyncClient:
    return await make_client()


@pytest.fixture
async def api(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", http_client=http, max_retries=0)
