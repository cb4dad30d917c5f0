"""Numbers that the fronts of one engine share: a file that each maps, with a row for each front.

A row is written by its own front alone (and cleared by the owner when that front is gone), a cell at a time, so readers
need no lock. Whoever lets a request in by what all rows say holds `locked` meanwhile; the system takes the lock back
from a process that dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

_CELL_BYTES = 8


class Column(IntEnum):
    """engine: the number of the engine that the front takes requests for, 0 while it takes none. connections: when it
    last looked. load: HTTP requests being answered. requests, waiting_tokens: what the queue's bounds are about. Beats
    and what follows are counted since the start; a beat is a sign of life, given several times a second.
    """

    PID = 0
    ENGINE = 1
    CONNECTIONS = 2
    LOAD = 3
    REQUESTS = 4
    WAITING_TOKENS = 5
    BEATS = 6
    PROMPT_TOKENS = 7
    GENERATED_TOKENS = 8


class FrontTable:
    """Made by whoever opens it first; all zero then."""

    def __init__(self, path: Path, num_fronts: int) -> None:
        num_bytes = _CELL_BYTES * (1 + num_fronts * len(Column))
        with path.open("a+b") as file:
            file.truncate(num_bytes)
            self._cells = memoryview(mmap.mmap(file.fileno(), num_bytes)).cast("q")
        self._lock_file = path.open("rb")
        self.num_fronts = num_fronts

    @property
    def draining(self) -> bool:
        """Whether the server takes no more requests, whichever front is asked."""
        return bool(self._cells[0])

    def drain(self) -> None:
        self._cells[0] = 1

    def set(self, front: int, column: Column, value: int) -> None:
        self._cells[self._cell(front, column)] = value

    def add(self, front: int, column: Column, amount: int) -> None:
        self._cells[self._cell(front, column)] += amount

    def column(self, column: Column) -> list[int]:
        return [self._cells[self._cell(front, column)] for front in range(self.num_fronts)]

    def total(self, column: Column) -> int:
        return sum(self.column(column))

    def clear(self, front: int) -> None:
        """What a front that is gone held is free; what it has counted stays."""
        for column in (Column.PID, Column.CONNECTIONS, Column.LOAD, Column.REQUESTS, Column.WAITING_TOKENS):
            self.set(front, column, 0)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For a few instructions: whoever else wants in waits."""
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _cell(self, front: int, column: Column) -> int:
        return 1 + front * len(Column) + column
