"""A server in a process of its own, as users start it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from tests.waiting import PATIENCE, wait_until

_READY = re.compile(r"serving .* on (\S+)$")
_LISTENING = re.compile(r"listening on (\S+); ")


class ServerProcess:
    """url: where it listens. log: the lines it wrote so far. awaited: the line of the log that has the URL."""

    def __init__(self, words: list[str], env: dict[str, str], module: str, awaited: re.Pattern[str] = _READY) -> None:
        self._awaited = awaited
        command = [sys.executable, "-m", module, *words]
        self.process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: bool(self.url) or self.process.poll() is not None)
        if not self.url:
            self._reader.join(PATIENCE)
            raise AssertionError("the server did not start:\n" + "".join(self.log))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if not self.url and (match := self._awaited.search(line.rstrip())):
                self.url = match[1]

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        (child,) = (child for child in children if "vllm.engine.processes.core_proc" in child.cmdline())
        return child

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE, **options)

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE, **options)

    @property
    def model(self) -> str:
        return self.client().models.list().data[0].id

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE)

    def metric(self, name: str) -> float:
        """The sum over all labels of a metric."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def is_idle(self) -> bool:
        return self.metric("vllm:num_requests_running") == self.metric("vllm:num_requests_waiting") == 0

    def stop(self) -> int:
        """Send SIGTERM and wait. The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextlib.contextmanager
def serve(
    model: Path,
    *words: str,
    device: str = "null",
    env: dict[str, str] | None = None,
    module: str = "vllm.entrypoints.openai.api_server",
    starting: bool = False,
) -> Iterator[ServerProcess]:
    """A server that takes requests; with `starting` one that only listens yet."""
    listen = [] if "--uds" in words else ["--port", "0"]
    options = ["--model", str(model), "--device", device, *listen, "--served-model-name", "test-model"]
    if module.endswith("cli.main"):
        options = ["serve", str(model), *options[2:]]
    server = ServerProcess([*options, *words], env or {}, module, _LISTENING if starting else _READY)
    try:
        yield server
    finally:
        server.stop()
