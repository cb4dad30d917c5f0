"""How a server is, in one place for /health, /live and the page at /."""

from __future__ import annotations

from enum import Enum

from starlette.datastructures import State


class Health(Enum):
    """The value is the name that programs are given, and what a client is told of it."""

    READY = ("ready", "")
    STARTING = ("starting", "The engine is starting.")
    DRAINING = ("draining", "The server is shutting down.")
    DEAD = ("dead", "The engine is not running.")
    STUCK = ("stuck", "The engine shows no life, or hangs in a step.")

    def __init__(self, label: str, message: str) -> None:
        self.label = label
        self.message = message


async def health_of(state: State) -> Health:
    """Of the server whose `app.state` this is. Requests are taken in READY alone."""
    if state.in_flight.draining:
        return Health.DRAINING
    return await engine_health(state) if state.readiness.ready else Health.STARTING


async def engine_health(state: State) -> Health:
    """Of an engine that has started: READY, DEAD or STUCK."""
    client = state.engine_client
    try:
        await client.check_health()
    except Exception:
        return Health.DEAD if client.errored else Health.STUCK
    return Health.DEAD if client.errored else Health.READY
