"""Faults for the threads of an engine's process, which has this directory on its path.

When the file that FAULT_FILE names appears, the thread that it names fails at what it does next.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.engine.processes import liveness

_look, _read = liveness.StepWatch.look, os.read


def _fail_if_told(name: str) -> None:
    file = Path(os.environ["FAULT_FILE"])
    if file.exists() and file.read_text() == name:
        raise RuntimeError(f"a fault of the thread {name}")


def look(*args: Any) -> None:
    _fail_if_told("heartbeat")
    _look(*args)


def read(*args: Any) -> bytes:
    data = _read(*args)
    _fail_if_told("parent-watch")
    return data


if "FAULT_FILE" in os.environ:
    liveness.StepWatch.look = look  # type: ignore[method-assign]
    os.read = read
