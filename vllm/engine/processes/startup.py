"""How far a start has come: written by whoever starts an engine, read by whoever is asked whether it runs.

Phases, in order:
  config    the checkpoint is found (downloaded where it must be), the configuration resolved, the tokenizer loaded
  process   the engine's process begins
  artifact  an artifact is looked for and verified
  compile   there is none: programs are compiled. The one phase whose share (0 to 1) grows
  load      the artifact is opened on the device
"""

from __future__ import annotations

import threading
import time
from typing import Any

PHASES = ("config", "process", "artifact", "compile", "load")


class StartCancelled(Exception):
    """Nobody waits for this start any more."""


class StartProgress:
    """Progress of one start. Any thread may write or read; `cancel` ends the start where it next reports or checks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._began = time.monotonic()
        self._phase_began = self._began
        self._phase, self._share, self._detail = PHASES[0], 0.0, ""
        self.seconds_by_phase: dict[str, float] = {}

    def report(self, phase: str, share: float = 0.0, detail: str = "") -> None:
        """Raises StartCancelled if the start was called off."""
        self.check()
        with self._lock:
            if phase != self._phase:
                self._end_phase()
                self._phase = phase
            self._share, self._detail = share, detail

    def finish(self) -> None:
        """The engine runs."""
        with self._lock:
            self._end_phase()

    def cancel(self) -> None:
        self._cancelled.set()

    def check(self) -> None:
        if self._cancelled.is_set():
            raise StartCancelled

    def to_dict(self) -> dict[str, Any]:
        """phase, share of it, detail, seconds since the start."""
        with self._lock:
            seconds = round(time.monotonic() - self._began, 1)
            return {"phase": self._phase, "share": round(self._share, 3), "detail": self._detail, "seconds": seconds}

    def __str__(self) -> str:
        now = self.to_dict()
        share = f" {now['share']:.0%}" if now["phase"] == "compile" else ""
        return f"{now['phase']}{share} after {now['seconds']:.0f} s"

    def _end_phase(self) -> None:
        now = time.monotonic()
        spent = self.seconds_by_phase.get(self._phase, 0.0)
        self.seconds_by_phase[self._phase] = spent + now - self._phase_began
        self._phase_began = now
