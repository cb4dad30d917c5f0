"""How tests wait: for events, with a bound that says only that something never happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds after which a test holds that something never happens. It makes no claim on speed: a busy machine may take
tens of seconds for what an idle one does in one."""


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


async def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
