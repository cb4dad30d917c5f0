"""The HTTP server of one of several fronts: it is stopped by its owner, and takes connections by turns.

All fronts wait at the one socket. Whoever wakes first could take a whole burst, and would keep it, since connections
are kept alive. So a front that has more connections than another leaves a new one to that for a moment, and takes it
after all where the other is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from vllm.engine.processes.front_table import Column, FrontTable
from vllm.entrypoints.server.launcher import DrainingServer

_PATIENCE_SECONDS = 0.001


class FrontServer(DrainingServer):
    """table: of all fronts; this is `front` among them."""

    def __init__(self, *args: Any, table: FrontTable, front: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table, self._front = table, front
        self._acceptor = self._make_acceptor(self._before_accepting)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the owner's."""
        yield

    async def _before_accepting(self) -> None:
        """Leave a connection to a front that has fewer, for a moment."""
        self._table.set(self._front, Column.CONNECTIONS, len(self._connections))
        counts = self._table.column(Column.CONNECTIONS)
        if counts[self._front] > min(counts):
            await asyncio.sleep(_PATIENCE_SECONDS)
