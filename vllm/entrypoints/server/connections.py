"""How many connections a server holds, so that descriptors are left for probes, files and engines.

A connection that waits for its client, before a request or within one, can be given up; one whose request is being
answered is not. Where all places are taken, a new connection takes that of the one which has waited longest. Where
all are being answered, a few more are let in for probes alone: a server that is full still says how it is.
"""

from __future__ import annotations

import math
import resource
from typing import Protocol

import psutil

from vllm.logger import init_logger

logger = init_logger(__name__)

WANTED_DESCRIPTORS = 65536
NUM_FOR_PROBES = 8
"""Connections beyond the others."""
_NUM_SPARE = 16
"""Descriptors for what a server opens while it runs: files, pipes, the sockets of a new engine."""
_LEAST = 4


class Connection(Protocol):
    def give_up(self) -> None:
        """Close at once, whatever was to be sent."""


class Connections:
    """Those of one process. most: places for all but probes."""

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        self._open: set[Connection] = set()
        self._for_probes: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        """For their clients; who has waited longest comes first."""
        self._num_given_up = 0

    def __len__(self) -> int:
        return len(self._open)

    def fit(self) -> None:
        """Have as many places as there are descriptors beside what this process has open otherwise."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            self.most = math.inf
            return
        num_others = psutil.Process().num_fds() - len(self._open)
        self.most = max(limit - num_others - _NUM_SPARE - NUM_FOR_PROBES, _LEAST)

    def add(self, connection: Connection) -> None:
        """No effect on one that was added before."""
        if connection in self._open:
            return
        if len(self._open) >= self.most and self._waiting:
            self._give_up_longest()
        if len(self._open) >= self.most:
            self._for_probes.add(connection)
        self._open.add(connection)
        self.wait(connection)
        if len(self._open) > self.most + NUM_FOR_PROBES:
            self._give_up_longest()

    def wait(self, connection: Connection) -> None:
        """From now on it waits for its client."""
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def answer(self, connection: Connection) -> None:
        """Its client waits for an answer."""
        self._waiting.pop(connection, None)

    def is_for_probes(self, connection: Connection) -> bool:
        """Whether it is one too many for anything else."""
        return connection in self._for_probes and len(self._open) > self.most

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._for_probes.discard(connection)
        self._waiting.pop(connection, None)

    def _give_up_longest(self) -> None:
        connection = next(iter(self._waiting))
        self.remove(connection)
        connection.give_up()
        self._num_given_up += 1
        if self._num_given_up & (self._num_given_up - 1) == 0:  # at powers of two: not a line for each
            logger.warning(
                "all %d connections are taken; so far %d were closed that waited for their clients",
                self.most,
                self._num_given_up,
            )


def raise_descriptor_limit() -> None:
    """To what a busy server needs, as far as the system lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
