"""Checkpoint -> artifact (hit, or compile and publish) -> `DeviceModel`, with progress that a person can read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.artifacts.find import Rejected, open_or_compile
from vllm.artifacts.manifest import DamagedArtifact
from vllm.artifacts.store import note_use
from vllm.config import VllmConfig
from vllm.device.model import DeviceModel, resolve_target
from vllm.logger import init_logger
from vllm.sizes import MIB

logger = init_logger(__name__)

PhaseReport = Callable[[str, float, str], None]
"""Called with the phase of the start ("artifact", "compile", "load"), the share of it done, and what is being done."""


@dataclass(slots=True)
class LoadInfo:
    """How a start went. seconds: by phase ("artifact": find, compile and publish; "load": open on the device)."""

    target: str
    artifact: str
    artifact_hit: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "artifact": self.artifact,
            "artifact_hit": self.artifact_hit,
            "startup_seconds": dict(self.seconds),
        }


def load_model(config: VllmConfig, report: PhaseReport | None = None) -> tuple[DeviceModel, LoadInfo]:
    """Open the model that `config` (resolved) describes, compiling it first if no artifact matches."""
    report = report or _report_nothing
    target = resolve_target(config.target)
    started = time.perf_counter()
    report("artifact", 0.0, "")
    progress, rejected = CompileProgress(report), Rejected()
    while True:
        directory, hit, _ = open_or_compile(config, target, progress, to_load=True, rejected=rejected)
        found = time.perf_counter()
        report("load", 0.0, "")
        try:
            device = target.load(config, directory)
            break
        except DamagedArtifact as error:
            if not hit:
                raise
            rejected.add(directory, str(error))
    note_use(directory)
    loaded = time.perf_counter()
    info = LoadInfo(config.target, str(directory), hit, {"artifact": found - started, "load": loaded - found})
    logger.info(
        "%s: %s artifact %s in %.2f s, loaded in %.2f s (%s)",
        config.target,
        "found" if hit else "compiled",
        directory,
        found - started,
        loaded - found,
        describe_memory(device.memory()),
    )
    return device, info


def describe_memory(memory: dict[str, int]) -> str:
    """Bytes by kind for a log line, in MiB."""
    return ", ".join(f"{kind} {size / MIB:.1f} MiB" for kind, size in memory.items()) or "no memory figures"


def _report_nothing(phase: str, share: float, detail: str) -> None:
    pass


class CompileProgress:
    """Reports what is being compiled; logs it once every `interval` seconds, with an estimate of what is left."""

    def __init__(self, report: PhaseReport = _report_nothing, interval: float = 2.0) -> None:
        self.report = report
        self.interval = interval
        self.started = time.perf_counter()
        self.last = 0.0

    def __call__(self, what: str, share: float) -> None:
        self.report("compile", share, what)
        now = time.perf_counter()
        elapsed = now - self.started
        if share < 1.0 and now - self.last < self.interval:
            return
        self.last = now
        left = f", about {elapsed / share - elapsed:.0f} s left" if 0.0 < share < 1.0 else ""
        logger.info("compiling: %3.0f %% after %.0f s%s (%s)", 100 * share, elapsed, left, what)
