"""Bodies of allowed size: their values are counted before they are decoded, and large ones are read off the loop."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
import typing
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.security.large import FILLINGS, forms_of, large_bodies
from tests.security.test_edge import all_routes
from tests.server.conftest import BASE, make_app
from tests.server.fake_engine import FakeEngine
from vllm.entrypoints.openai.bodies import INLINE_BYTES, LARGEST_BYTES, BodyBounds, BodyReader, StrictRoute
from vllm.entrypoints.server import json_counts
from vllm.entrypoints.server.json_counts import MAX_ITEMS, MAX_OBJECTS, check_counts
from vllm.exceptions import VLLMValidationError

JSON = {"Content-Type": "application/json"}
MEBIBYTE = 1 << 20

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a,[{:"\\é\n', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a,"\\:{', max_size=4), inner, max_size=4),
    max_leaves=30,
)


def numbers_in(value: Any) -> tuple[int, int]:
    """Values of every kind, names of members among them; and those that are no numbers."""
    children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    counts = [numbers_in(child) for child in children]
    is_number = type(value) in (int, float)
    return 1 + sum(items for items, _ in counts), (not is_number) + sum(objects for _, objects in counts)


def is_refused(text: bytes, max_items: int, max_objects: int) -> bool:
    try:
        check_counts(text, max_items, max_objects)
    except VLLMValidationError:
        return True
    return False


class TestCounts:
    """S1, S2"""

    @settings(max_examples=200, deadline=None)
    @given(VALUES, st.integers(1, 20), st.booleans())
    def test_no_more_values_than_allowed(self, value: Any, chunk_bytes: int, ascii_only: bool) -> None:
        """Never fewer are counted than there are. Beside what closes nothing, none is counted that is not there."""
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        items, objects = numbers_in(value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_counts, "_CHUNK_BYTES", chunk_bytes)
            num_chunks = len(text) // chunk_bytes + 1
            assert items == 1 or is_refused(text, items - 1, 1 << 30) or len(text) < items
            assert objects <= 1 or is_refused(text, 1 << 30, objects - 1) or len(text) < objects
            assert not is_refused(text, 2 * items + 1, objects + num_chunks)

    @pytest.mark.parametrize("text", [b'"' + b'[1,{"t:f' * 500_000 + b'"', b'"' + b'\\"\\\\,' * 300_000 + b'"'])
    def test_what_strings_hold_does_not_count(self, text: bytes) -> None:
        check_counts(b"[" + text.replace(b'{"t', b"{t") + b"]")

    @pytest.mark.parametrize("rest", [b"", b"\\", b'\\"', b'"', b"}", b"\x00", b"\xff"])
    def test_what_comes_before_a_fault_counts(self, rest: bytes) -> None:
        """A decoder makes it before it finds the fault."""
        assert is_refused(b'{"a":[' + b"[]," * (MAX_OBJECTS + 1) + rest, MAX_ITEMS, MAX_OBJECTS)

    def test_a_scan_ends_at_the_bound(self) -> None:
        tracemalloc.start()
        try:
            assert is_refused(b'"' * LARGEST_BYTES, MAX_ITEMS, MAX_OBJECTS)
            assert tracemalloc.get_traced_memory()[1] < LARGEST_BYTES + 16 * MEBIBYTE
        finally:
            tracemalloc.stop()


class TestBounds:
    @pytest.mark.parametrize(
        ("given", "max_model_len", "takes_images", "expected"),
        [
            (None, 256, False, 4 * MEBIBYTE),
            (None, 131072, False, 4 * MEBIBYTE),
            (None, 400_000, False, 32 * 400_000),
            (None, 10**8, False, LARGEST_BYTES),
            (None, 256, True, LARGEST_BYTES),
            (1000, 131072, True, 1000),
            (1 << 30, 256, False, 1 << 30),
        ],
    )
    def test_bytes(self, given: int | None, max_model_len: int, takes_images: bool, expected: int) -> None:
        assert BodyBounds.of_model(given, max_model_len, takes_images=takes_images).max_bytes == expected

    @pytest.mark.parametrize("max_model_len", [64, 131072, 10**7])
    def test_a_whole_prompt_fits(self, max_model_len: int) -> None:
        bounds = BodyBounds.of_model(None, max_model_len, takes_images=False)
        prompt = b'{"prompt":[' + b"7," * (max_model_len - 1) + b"7]}"
        assert len(prompt) < bounds.max_bytes
        check_counts(prompt, bounds.max_items)


class TestReader:
    async def test_large_bodies_are_read_beside_the_loop(self) -> None:
        reader, seen = BodyReader(BodyBounds()), threading.Event()

        def make(value: Any) -> Any:
            assert seen.wait(60), "the loop stands still"
            return value

        work = asyncio.create_task(reader.read(b" " * INLINE_BYTES + b"[1]", make))
        await asyncio.sleep(0)
        seen.set()
        assert await work == [1]

    async def test_small_ones_are_read_at_once(self) -> None:
        reader = BodyReader(BodyBounds())
        assert await reader.read(b"[1]", lambda _: threading.current_thread()) is threading.current_thread()


HOSTILE_BODIES = {
    "S1: token ids": b'{"max_tokens":1,"prompt":[' + b"1," * (MEBIBYTE) + b"1]}",
    "S2: empty lists": b'{"messages":[],"input":"x","prompt":"x","max_tokens":1,"a":[' + b"[]," * MEBIBYTE + b"[]]}",
    "members": b'{"prompt":"x","a":{' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}}",
    "not closed": b"[" + b'{"":"",' * 500_000,
}


@pytest.fixture
async def app() -> FastAPI:
    return await make_app(FakeEngine(max_model_len=4096))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


@pytest.mark.parametrize("name", HOSTILE_BODIES)
async def test_every_route_counts_first(app: FastAPI, client: httpx.AsyncClient, name: str) -> None:
    forms = list(forms_of(app.openapi()))
    for form in forms if name[:2] in ("S1", "S2") else forms[:1]:
        tracemalloc.start()
        try:
            response = await client.post(form.path, content=HOSTILE_BODIES[name], headers=JSON)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert response.status_code == 400 and "A request may hold at most" in response.text, (form.path, response.text)
        assert peak < 2 * len(HOSTILE_BODIES[name]) + MEBIBYTE, "it was decoded first"


@pytest.mark.parametrize(
    ("path", "field", "filling", "most"),
    [
        ("/detokenize", "tokens", "large numbers", 500_000),
        ("/v1/completions", "some_label", "objects with a member", MAX_OBJECTS // 3),
        ("/v1/chat/completions", "chat_template_kwargs", "members with strings", MAX_OBJECTS // 3),
        ("/v1/chat/completions", "messages", "parts", MAX_OBJECTS // 8),
        ("/v1/responses", "metadata", "members", MAX_OBJECTS // 3),
    ],
)
async def test_what_fits_is_cheap(
    app: FastAPI, client: httpx.AsyncClient, path: str, field: str, filling: str, most: int
) -> None:
    (form,) = (form for form in forms_of(app.openapi()) if form.path == path)
    (body,) = (body for body in large_bodies(form, filling, 4 * MEBIBYTE, most) if body.field == field)
    tracemalloc.start()
    try:
        response = await client.post(path, content=body.content, headers=JSON)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code in (200, 400) and "at most" not in response.text
    assert peak < 128 * MEBIBYTE


@pytest.mark.parametrize("filling", FILLINGS)
async def test_lists_are_refused_at_their_first_fault(app: FastAPI, filling: str) -> None:
    """S1: 16 million faults of one field took 4 GiB. Every field of every route."""
    adapters = {
        route.path: TypeAdapter(typing.get_type_hints(route.endpoint, include_extras=True)["request"])
        for route in all_routes(app)
        if isinstance(route, StrictRoute) and route.body_field is not None
    }
    for form in forms_of(app.openapi()):
        for body in large_bodies(form, filling, 1 << 20, 200):
            try:
                adapters[form.path].validate_python(json.loads(body.content))
            except ValidationError as error:
                assert error.error_count() < 20, str(body)
