"""Mixed traffic against a server: good requests whose answers are known, clients that leave, and nonsense.

Each kind of request says what must come of it. Anything else is a failure, kept with its cause; the traffic goes on.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

NUM_KNOWN = 24
"""Requests whose texts are asked for once, alone, before the traffic begins; later answers must equal them."""
_SECONDS = 900
"""What a request may take: long, since a machine that others use may hold everything up for minutes."""
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
_BAD: tuple[Any, ...] = (
    {"prompt": [10**9]},
    {"prompt": "a", "n": 10**9},
    {"prompt": "a", "min_tokens": 50, "max_tokens": 10},
    {"prompt": "a" * 100_000},
    {"prompt": "a", "temperature": 1e308},
    {"prompt": "a", "cache_salt": "\u0000"},
    {"prompt": "a", "stop": ["x"] * 200},
    {"prompt": "a", "structured_outputs": {"regex": "("}},
    {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}},
    {"prompt": "a", "temprature": 1},
    {"prompt": ""},
    [],
    "text",
)


class Traffic:
    """`run(seconds)` sends about `rate` requests a second. done: by kind. failures: what should not have come."""

    def __init__(self, http: httpx.AsyncClient, *, rate: float, max_model_len: int, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._http = http
        self._rate = rate
        self._max_model_len = max_model_len
        self._rng = random.Random(seed)
        self._known: list[tuple[dict[str, Any], str]] = []
        self._kinds: dict[Callable[[], Awaitable[None]], int] = {
            self.plain: 3,
            self.stream: 6,
            self.chat: 2,
            self.several: 1,
            self.leave: 3,
            self.structured: 1,
            self.long: 1,
            self.bad: 3,
        }

    async def learn(self) -> None:
        """Ask each of the known requests alone."""
        for i in range(NUM_KNOWN):
            body = {"prompt": f"Request {i}: " + "word " * (i % 7), "max_tokens": 8 + i, "seed": i, "temperature": 1}
            self._known.append((body, (await self._answer(body))["choices"][0]["text"]))

    async def run(self, seconds: float) -> None:
        """Requests that run at the end are waited for."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        running: set[asyncio.Task[None]] = set()
        kinds, weights = list(self._kinds), list(self._kinds.values())
        while loop.time() < end:
            await asyncio.sleep(min(self._rng.expovariate(self._rate), end - loop.time()))
            (kind,) = self._rng.choices(kinds, weights)
            task = asyncio.create_task(self._guarded(kind))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running, timeout=_SECONDS)
        self.failures += [f"a request still ran {_SECONDS} s after the end" for _ in running]

    async def _guarded(self, kind: Callable[[], Awaitable[None]]) -> None:
        name = getattr(kind, "__name__", "request")
        try:
            await asyncio.wait_for(kind(), _SECONDS)
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            self.done[name] += 1

    async def plain(self) -> None:
        body, text = self._rng.choice(self._known)
        _expect((await self._answer(body))["choices"][0]["text"] == text, "a text that differs from its solo run")

    async def stream(self) -> None:
        body, text = self._rng.choice(self._known)
        events = [event async for event in self._events(body)]
        got = "".join(choice["text"] for event in events for choice in event["choices"])
        _expect(got == text, "a streamed text that differs from its solo run")

    async def several(self) -> None:
        body, _ = self._rng.choice(self._known)
        choices = (await self._answer({**body, "n": 3}))["choices"]
        _expect(len(choices) == 3, f"{len(choices)} choices instead of 3")

    async def chat(self) -> None:
        body = {"messages": [{"role": "user", "content": f"hello {self._rng.random()}"}], "max_tokens": 20}
        answer = await self._answer(body, "/v1/chat/completions")
        _expect(answer["choices"][0]["finish_reason"] in ("stop", "length"), "an odd finish_reason")

    async def structured(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
        answer = await self._answer({"prompt": "a", "max_tokens": 60, "response_format": wanted})
        (choice,) = answer["choices"]
        if choice["finish_reason"] == "stop":
            _expect(set(json.loads(choice["text"])) == {"ok", "n"}, "an output against its schema")

    async def long(self) -> None:
        num_tokens = self._max_model_len - self._rng.randrange(2, 40)
        prompt = [self._rng.randrange(10, 300) for _ in range(num_tokens)]
        await self._answer({"prompt": prompt, "max_tokens": 30})

    async def leave(self) -> None:
        """After none, some or most of the events; of a plain request, before the answer."""
        body = {"prompt": f"leave {self._rng.random()}", "max_tokens": 100, "ignore_eos": True}
        if self._rng.random() < 0.3:
            task = asyncio.create_task(self._answer(body))
            await asyncio.sleep(self._rng.random() * 0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        num_wanted = self._rng.choice((0, 1, 10, 60))
        async with self._http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            _expect(response.status_code == 200, f"status {response.status_code}")
            num_seen = 0
            async for _ in response.aiter_lines():
                num_seen += 1
                if num_seen > num_wanted:
                    return

    async def bad(self) -> None:
        body = self._rng.choice(_BAD)
        response = await self._http.post("/v1/completions", json=body)
        _expect(400 <= response.status_code < 500, f"status {response.status_code} for {str(body)[:80]}")

    async def _answer(self, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
        response = await self._http.post(path, json=body)
        _expect(response.status_code == 200, f"status {response.status_code}: {response.text[:200]}")
        answer: dict[str, Any] = response.json()
        return answer

    async def _events(self, body: dict[str, Any]) -> Any:
        async with self._http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            _expect(response.status_code == 200, f"status {response.status_code}")
            last = ""
            async for line in response.aiter_lines():
                last = line or last
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    _expect("error" not in event, str(event))
                    yield event
            _expect(last == "data: [DONE]", "a stream that ended without [DONE]")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)
