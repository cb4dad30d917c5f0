"""Private directories: for whom they are, how they end, and what becomes of those whose owners were killed."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from vllm.engine.processes.private_directory import PrivateDirectory


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    return tmp_path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("VLLM_RPC_BASE_PATH", directory)
        yield directory


def test_nobody_else_enters(short: str) -> None:
    directory = PrivateDirectory()
    assert directory.path.parent == Path(short)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    (directory.path / "core.in").touch()
    directory.close()
    directory.close()
    assert not directory.path.exists()


def test_left_overs_are_swept(short: str) -> None:
    """S16: they stayed for ever."""
    alive, dead = PrivateDirectory(), PrivateDirectory()
    (dead.path / "sockets").mkdir()
    dead._lock.close()  # as the system does at the end of a process
    others = Path(short) / "vllm-of-somebody"
    others.mkdir()
    new = PrivateDirectory()
    assert not dead.path.exists()
    assert alive.path.exists() and new.path.exists() and others.exists()


def test_a_long_temporary_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: it ended the start with a message of zmq's."""
    long = base / ("x" * 130)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    directory = PrivateDirectory()
    try:
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.bind(f"ipc://{directory.path}/123.63.beat")
    finally:
        directory.close()
    assert not list(long.iterdir())


def test_a_long_directory_that_is_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: what to do is said."""
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(base / ("x" * 130)))
    with pytest.raises(OSError, match=r"VLLM_RPC_BASE_PATH has \d+ bytes.*: give a directory of at most \d+"):
        PrivateDirectory()


def test_the_longest_name_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        room = 107 - len("/vllm-12345678/123.63.beat")
        base = Path(directory, "x" * (room - len(directory) - 1))
        base.mkdir()
        monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(base))
        private = PrivateDirectory()
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.bind(f"ipc://{private.path}/123.63.beat")
        private.close()
