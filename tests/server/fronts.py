"""A server with several fronts, and connections to each of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

FRONT = "vllm.entrypoints.openai.fronts.front"


class Fronts:
    """clients: one for each front, on a connection that this front accepted."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.processes = [each for each in _children(server) if FRONT in each.cmdline()]
        self.clients = [self.connect(front) for front in range(len(self.processes))]

    def connect(self, front: int) -> httpx.Client:
        """On a new connection that this front accepted."""
        while True:
            client = httpx.Client(base_url=self.server.url, timeout=PATIENCE)
            port = client.get("/version").extensions["network_stream"].get_extra_info("client_addr")[1]
            if port in _ports(self.processes[front]):
                return client
            client.close()

    def openai(self, front: int) -> openai.OpenAI:
        http = self.clients[front]
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0, http_client=http)

    def metric(self, name: str, front: int = 0) -> float:
        """The sum over all labels, as one front tells it."""
        return sum_of(self.clients[front].get("/metrics").text, name)

    def num_running(self) -> float:
        return self.metric("vllm:num_requests_running")

    def is_idle(self) -> bool:
        return self.num_running() == self.metric("vllm:num_requests_waiting") == 0

    def num_connections(self) -> list[int]:
        """Of each front."""
        return [len(_ports(process)) for process in self.processes]

    def close(self) -> None:
        for client in self.clients:
            client.close()


@contextlib.contextmanager
def serve_fronts(model: Path, count: int, *words: str, env: dict[str, str] | None = None) -> Iterator[Fronts]:
    """Nothing of theirs is left at the end: no process, and no directory."""
    with tempfile.TemporaryDirectory() as directory:
        env = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600", "VLLM_RPC_BASE_PATH": directory, **(env or {})}
        with serve(model, "--api-server-count", str(count), *words, env=env) as server:
            children = _children(server)
            fronts = Fronts(server)
            try:
                yield fronts
            finally:
                fronts.close()
        wait_until(lambda: not any(map(is_alive, children)))
        assert not list(Path(directory).iterdir())


def sum_of(metrics: str, name: str) -> float:
    """Over all labels of a metric, in Prometheus form."""
    lines = metrics.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _children(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def _ports(process: psutil.Process) -> set[int]:
    """Of those who are connected to it."""
    return {each.raddr.port for each in process.net_connections("tcp") if each.raddr and each.status == "ESTABLISHED"}
