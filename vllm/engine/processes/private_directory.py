"""A process's own directory for the sockets to its children and what they share.

It is gone when its owner is done. An owner that is killed leaves it behind, so the next one that makes a directory in
the same place sweeps it: an owner holds a lock on the file `owner` in it, which the system takes back from the dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from vllm import envs
from vllm.logger import init_logger

logger = init_logger(__name__)

_PREFIX = "vllm-"
_OWNER = "owner"
_LONGEST_SOCKET = 107
"""Bytes that the system takes for the path of a socket."""
_ROOM = len(f"/{_PREFIX}12345678/123.63.beat")
"""Of which so many are ours: the directory, and the longest name in it."""
_OTHERS = ("/tmp", "/var/tmp")


class PrivateDirectory:
    """path: where it is; nobody else may enter."""

    def __init__(self) -> None:
        """Raises OSError if there is no place for it."""
        base = _base()
        _sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock = _locked(self.path)

    def close(self) -> None:
        """Remove it, with all that is in it. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _base() -> Path:
    """Where directories go: VLLM_RPC_BASE_PATH, else the temporary directory, or another one if that is too long."""
    if given := envs.VLLM_RPC_BASE_PATH:
        if not _has_room(given):
            raise OSError(
                f"VLLM_RPC_BASE_PATH has {len(os.fsencode(given))} bytes, and the path of a socket takes "
                f"{_LONGEST_SOCKET} with a name of ours in it: give a directory of at most {_LONGEST_SOCKET - _ROOM}"
            )
        return Path(given)
    temporary = tempfile.gettempdir()
    if _has_room(temporary):
        return Path(temporary)
    for other in _OTHERS:
        if os.access(other, os.W_OK | os.X_OK):
            logger.warning(
                "the temporary directory %s has too long a name for sockets: they go to %s", temporary, other
            )
            return Path(other)
    raise OSError(
        f"the temporary directory {temporary} has too long a name for sockets, and neither {' nor '.join(_OTHERS)} can "
        f"be written to: set VLLM_RPC_BASE_PATH to a directory of at most {_LONGEST_SOCKET - _ROOM} bytes"
    )


def _has_room(base: str) -> bool:
    return len(os.fsencode(base)) + _ROOM <= _LONGEST_SOCKET


def _locked(path: Path) -> IO[bytes]:
    """Its file `owner`, which is locked before anybody else sees it under that name."""
    unnamed = path / f".{_OWNER}"
    lock = unnamed.open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(path / _OWNER)
    return lock


def _sweep(base: Path) -> None:
    """Remove the directories whose owners are gone."""
    for path in base.glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError):  # another user's; or its owner lives; or another process was faster
            if path.parent.stat().st_uid != os.getuid():
                continue
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent)
