"""What lies between the processes of a server, and between those who use it: sockets, caches, connections."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq

from tests.server.process import ServerProcess, serve
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    words = ("--max-model-len", "256", "--max-num-seqs", "4", "--block-size", "16", "--enable-prefix-caching")
    with serve(tiny_llama, *words, "--enable-prompt-tokens-details") as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left_over(server: ServerProcess) -> Iterator[None]:
    yield
    wait_until(server.is_idle)
    assert server.get("/health").status_code == 200


def complete(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    response = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": "hello", "max_tokens": 2, **fields}, timeout=60
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def sockets_of(server: ServerProcess) -> list[Path]:
    """Those in the file system, of the server and of its engine."""
    processes = [psutil.Process(server.process.pid), server.engine]
    return sorted({Path(c.laddr) for p in processes for c in p.net_connections("unix") if c.laddr})


class Payload:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


class TestPickleOnSockets:
    def test_it_is_dropped_unread(self, server: ServerProcess, tmp_path: Path) -> None:
        mark = tmp_path / "mark"
        payload = pickle.dumps(Payload(mark))
        pickle.loads(payload)
        assert mark.is_dir(), "the payload works"
        mark.rmdir()
        paths = sockets_of(server)
        assert len(paths) >= 3, "requests, outputs, signs of life"
        with zmq.Context() as context:
            for path in paths:
                for kind in (zmq.PUSH, zmq.DEALER):
                    with context.socket(kind) as sender:
                        sender.linger = 200
                        sender.connect(f"ipc://{path}")
                        sender.send(payload)
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(str(path))
                    raw.sendall(payload)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(payload)
        assert complete(server)["choices"]
        assert not mark.exists()

    def test_the_sockets_are_private(self, server: ServerProcess) -> None:
        for path in sockets_of(server):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert path.parent.stat().st_uid == os.getuid()


class TestPrefixesOfOthers:
    PROMPT = "The quick brown fox jumps over the lazy dog while the engine keeps its promise."

    def cached(self, server: ServerProcess, **fields: Any) -> int:
        hits = server.metric("vllm:prefix_cache_hits_total")
        details = complete(server, prompt=self.PROMPT, **fields)["usage"]["prompt_tokens_details"]
        assert server.metric("vllm:prefix_cache_hits_total") - hits == details["cached_tokens"]
        return int(details["cached_tokens"])

    def test_another_salt_finds_nothing(self, server: ServerProcess) -> None:
        """Neither by the count, nor by the metric, can one tell what somebody else has asked."""
        assert self.cached(server, cache_salt="mine") == 0
        assert self.cached(server, cache_salt="mine") > 0
        assert self.cached(server, cache_salt="yours") == self.cached(server) == 0


class TestConnectionsThatAreNeverReleased:
    @pytest.mark.parametrize("stream", [True, False])
    def test_clients_that_vanish(self, server: ServerProcess, stream: bool) -> None:
        """Without a word of farewell, in the middle of an answer: nothing of them is kept."""
        front = psutil.Process(server.process.pid)
        host, port = server.url.removeprefix("http://").split(":")
        body = b'{"prompt": "a", "max_tokens": 200, "ignore_eos": true, "stream": %s}' % str(stream).lower().encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        complete(server)
        wait_until(server.is_idle)
        before = front.num_fds()
        for _ in range(40):
            raw = socket.create_connection((host, int(port)))
            raw.sendall(head % len(body) + body)
            if stream:
                assert raw.recv(12) == b"HTTP/1.1 200"
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        wait_until(server.is_idle)
        wait_until(lambda: front.num_fds() <= before + 2)
