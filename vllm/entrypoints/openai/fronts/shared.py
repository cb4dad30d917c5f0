"""What a front has in common with the others: whether requests are taken, how many run, metrics, stored responses.

Each is what a single front has, over the table of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from vllm.engine.processes.front_table import Column, FrontTable
from vllm.entrypoints.server.engine_life import Readiness
from vllm.entrypoints.server.in_flight import InFlight

# The one family whose labels change keeps them all in the files; the latest is chosen where they are read.
warnings.filterwarnings("ignore", "Clearing labels has not been implemented", UserWarning)
_RELABELLED = "vllm:lora_requests_info"


class SharedReadiness(Readiness):
    """Requests are taken once every front takes them for the same engine, so a client meets no front that lags."""

    def __init__(self, table: FrontTable, front: int) -> None:
        self._table, self._front = table, front
        self.engine = 0
        """The number of the engine that is attached to."""
        super().__init__()

    @property
    def ready(self) -> bool:
        return self._is_open and set(self._table.column(Column.ENGINE)) == {self.engine}

    def open(self) -> None:
        super().open()
        self._table.set(self._front, Column.ENGINE, self.engine)

    def close(self) -> None:
        super().close()
        self._table.set(self._front, Column.ENGINE, 0)


class SharedInFlight(InFlight):
    """Requests of this front; `load` is of all."""

    def __init__(self, table: FrontTable, front: int) -> None:
        self._table, self._front = table, front
        super().__init__()

    @property
    def draining(self) -> bool:
        return super().draining or self._table.draining

    @property
    def load(self) -> int:
        return self._table.total(Column.LOAD)

    def _note(self) -> None:
        self._table.set(self._front, Column.LOAD, len(self))


class SharedMetrics:
    """The total of all fronts' metrics, whichever is asked."""

    def __init__(self, table: FrontTable, directory: Path) -> None:
        """directory: PROMETHEUS_MULTIPROC_DIR of the fronts."""
        self._table, self._directory = table, directory

    def collect(self) -> Iterator[Metric]:
        files = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
        for family in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
            if family.name == _RELABELLED:
                family.samples = [max(family.samples, key=lambda sample: sample.value)]
            yield family
        yield from PlatformCollector(registry=None).collect()
        yield from _process_figures([pid for pid in self._table.column(Column.PID) if pid])


class Shared:
    """What the application of one of several fronts is built with."""

    def __init__(self, table: FrontTable, front: int, directory: Path) -> None:
        self.readiness = SharedReadiness(table, front)
        self.in_flight = SharedInFlight(table, front)
        self.metrics = SharedMetrics(table, metrics_directory(directory))
        self.store_path = str(directory / "responses")


def metrics_directory(directory: Path) -> Path:
    return directory / "metrics"


def core_address(directory: Path, engine: int, front: int) -> str:
    """Of a front's sockets to an engine's core."""
    return f"ipc://{directory}/{engine}.{front}"


def _process_figures(pids: list[int]) -> Iterator[Metric]:
    """Memory, processor time and open files of several processes: sums, and the earliest start."""
    totals: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            total = totals.setdefault(family.name, family)
            if total is family:
                continue
            (before,), (new,) = total.samples, family.samples
            combine = min if family.name == "process_start_time_seconds" else _sum
            total.samples = [before._replace(value=combine(before.value, new.value))]
    yield from totals.values()


def _sum(left: float, right: float) -> float:
    return left + right
