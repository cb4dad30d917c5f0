"""What every Python client is asked, and how it tells what came of it. It runs in the client's own environment.

A driver's checks are functions without arguments; what each returns is held against what `checks.py` expects of the
name. The last line that a driver prints is JSON: the client's version, and each check's result or its error.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL = sys.argv[1]
ASKED: dict[str, Any] = json.loads(sys.argv[2])
MODEL, KEY = ASKED["model"], "none"
SAY, THINK = ASKED["say"], ASKED["think"]
"""Orders to write something, without and with a thought before it."""
TURNS: list[str] = ASKED["turns"]
"""Orders to call the tool, each of which is one turn of a conversation."""
TOOL = ASKED["tool"]
"""Name, description and parameters of the tool."""
SCHEMA = ASKED["schema"]
CITIES = ASKED["cities"]

LOOP = asyncio.new_event_loop()
"""One for all checks: clients keep their connections in it."""
called: list[Any] = []
"""What the tool was called with."""


def get_weather(city: str) -> str:
    """The weather of a city, in degrees."""
    called.append({"city": city})
    return weather_line(city)


def tools(*texts: str) -> dict[str, Any]:
    """The result of a check of tools: the calls since the last one, and the answers to each turn."""
    calls = list(called)
    called.clear()
    return {"calls": calls, "texts": list(texts)}


def weather_line(city: str) -> str:
    return f"{city}: {ASKED['degrees']} degrees"


def tools_by(ask: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """Of a client that leaves the loop over tools to its user. ask: from a chat's messages to the next one."""
    history: list[Any] = []
    texts = []
    for turn in TURNS:
        history.append({"role": "user", "content": turn})
        while True:
            message = ask(history)
            history.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                result = get_weather(**json.loads(call.function.arguments))
                history.append({"role": "tool", "tool_call_id": call.id, "content": result})
        texts.append(message.content)
    return tools(*texts)


def run(package: str, **checks: Callable[[], Any]) -> None:
    report(importlib.metadata.version(package), **checks)


def report(version: str, **checks: Callable[[], Any]) -> None:
    told = {name: _result(check) for name, check in checks.items()}
    print(json.dumps({"version": version, "results": told}))


def _result(check: Callable[[], Any]) -> dict[str, Any]:
    called.clear()
    try:
        value = check()
        if inspect.iscoroutine(value):
            value = LOOP.run_until_complete(value)
        return {"value": value}
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
