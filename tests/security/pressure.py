"""Large bodies at a server, with a stream and /health timed beside them, and the memory of the front.

`python -m tests.security.pressure URL PID [SECONDS] [SEED]` presses a running server whose front is PID, and ends with
status 1 if one body is answered by a fault of the server's, holds the stream or /health for more than `MOST_SECONDS`
each time it is tried, or costs more than `MOST_BYTES` beyond itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.security.fuzzer import is_fine
from tests.security.large import FILLINGS, LargeBody, forms_of, large_bodies

MOST_SECONDS = 0.1
MOST_BYTES = 256 << 20
NUM_TRIES = 4
_QUIET_SECONDS = 0.05
_LOOK_SECONDS = 0.002


class Watch:
    """A client in a process of its own, with a stream and /health; `gap` is the longest silence since `reset`."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._gap: Synchronized[float] = context.Value("d", 0.0)
        self._process = context.Process(target=_watch, args=(url, self._gap), daemon=True)
        self._process.start()

    @property
    def gap(self) -> float:
        return self._gap.value

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def reset(self) -> None:
        self._gap.value = 0.0

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _watch(url: str, gap: Synchronized[float]) -> None:
    asyncio.run(_watch_both(url, gap))


async def _watch_both(url: str, gap: Synchronized[float]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        body = {"prompt": "a", "max_tokens": model["max_model_len"] - 8, "ignore_eos": True, "stream": True}

        async def stream() -> None:
            while True:
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    response.raise_for_status()
                    since = time.monotonic()
                    async for _ in response.aiter_lines():
                        gap.value = max(gap.value, time.monotonic() - since)
                        since = time.monotonic()

        async def health() -> None:
            while True:
                since = time.monotonic()
                (await client.get("/health")).raise_for_status()
                gap.value = max(gap.value, time.monotonic() - since)
                await asyncio.sleep(_LOOK_SECONDS)

        await asyncio.gather(stream(), health())


class Pressure:
    """worst: the longest gap and the most memory that one body cost, with its name."""

    def __init__(self, url: str, front: int) -> None:
        self.faults: list[str] = []
        self.num_bodies = 0
        self.worst_gap = (0.0, "")
        self.worst_bytes = (0, "")
        self._front = psutil.Process(front)
        self._client = httpx.Client(base_url=url, timeout=600)
        self._watch = Watch(url)
        self._document: dict[str, Any] = self._client.get("/openapi.json").json()
        while not self._watch.gap:
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        self._watch.close()
        self._client.close()

    def bodies(self, dice: random.Random, num_bytes: int) -> Iterator[LargeBody]:
        """All, in a random order; with the most entries that are taken, and with more."""
        pairs = [(form, filling) for form in forms_of(self._document) for filling in FILLINGS]
        dice.shuffle(pairs)
        for form, filling in pairs:
            most = dice.choice([8_000, 20_000, 60_000, 500_000, 1 << 40])
            yield from large_bodies(form, filling, num_bytes, most)

    def send(self, body: LargeBody) -> None:
        self.num_bodies += 1
        gaps = []
        for _ in range(NUM_TRIES):
            gaps.append(self._send(body))
            if gaps[-1] < MOST_SECONDS:
                break
        else:
            self.faults.append(f"{body}: others waited for {', '.join(f'{gap:.2f}' for gap in gaps)} s")
        self.worst_gap = max(self.worst_gap, (min(gaps), str(body)))

    def _send(self, body: LargeBody) -> float:
        """The longest that others waited, in seconds."""
        if not self._watch.is_alive:
            raise RuntimeError("the client beside the bodies failed; its error is above")
        before = _reset_peak(self._front)
        self._watch.reset()
        headers = {"Content-Type": "application/json"}
        response = self._client.post(body.path, content=body.content, headers=headers)
        time.sleep(_QUIET_SECONDS)
        cost = _peak(self._front) - before - len(body.content)
        self.worst_bytes = max(self.worst_bytes, (cost, str(body)))
        if not is_fine(response.status_code):
            self.faults.append(f"{body}: {response.status_code} {response.text[:500]}")
        if cost > MOST_BYTES:
            self.faults.append(f"{body}: {cost >> 20} MiB of memory")
        return self._watch.gap


def _reset_peak(process: psutil.Process) -> int:
    """The bytes that a process holds; the peak is counted from now."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(process.memory_info().rss)


def _peak(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def press(url: str, front: int, seconds: float, seed: int, num_bytes: int = (4 << 20) - 4096) -> int:
    """Exit status. num_bytes: of the largest bodies; a little below what the server takes."""
    deadline = time.monotonic() + seconds
    pressure = Pressure(url, front)
    try:
        for body in pressure.bodies(random.Random(seed), num_bytes):
            pressure.send(body)
            if time.monotonic() > deadline:
                break
    finally:
        pressure.close()
    (gap, slowest), (cost, largest) = pressure.worst_gap, pressure.worst_bytes
    print(f"seed {seed}: {pressure.num_bodies} large bodies")
    print(f"longest gap {gap:.3f} s ({slowest}), most memory {cost >> 20} MiB ({largest})")
    print("\n".join(pressure.faults))
    return int(bool(pressure.faults))


if __name__ == "__main__":
    address, pid, *numbers = sys.argv[1:]
    sys.exit(press(address, int(pid), *map(float, numbers[:1] or [60]), *map(int, numbers[1:2] or [0])))
