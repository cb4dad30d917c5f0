"""Starting an engine core elsewhere: as a child process of this one, or wherever another launcher puts it.

A core is reached by the addresses of its sockets, and takes its configuration as one line of JSON on its input. So a
launcher needs only a way to run `python -m vllm.engine.processes.core_proc ADDRESS [FRONT_ADDRESS ...]`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

from vllm import envs
from vllm.config import VllmConfig
from vllm.engine.processes.core_proc import encode_config


class CoreHandle(Protocol):
    """A core that a launcher started."""

    @property
    def pid(self) -> int | None:
        """Its process on this host; None for one elsewhere."""
        ...

    def lost(self) -> str | None:
        """Why the core is gone, once it is."""
        ...

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end; whether it has ended."""
        ...

    def kill(self) -> None:
        """End it at once. No fault if it has ended."""
        ...

    def close(self) -> None:
        """Let go of it after its end. A core whose owner goes away ends by itself."""
        ...


class Launcher(Protocol):
    def start(self, config: VllmConfig, addresses: Sequence[str]) -> CoreHandle:
        """addresses: prefixes of sockets, the owner's first, then those of fronts that ask in its stead."""
        ...


class ChildProcess:
    """A core in a child process. The pipe to its standard input stays open: when it closes, the core ends."""

    def __init__(self, config: VllmConfig, addresses: Sequence[str]) -> None:
        command = [sys.executable, "-m", "vllm.engine.processes.core_proc", *addresses]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=envs.of_children())
        if self.process.stdin is None:
            raise RuntimeError("the engine process was started without a pipe")
        self._stdin = self.process.stdin
        try:
            self._stdin.write(encode_config(config))
            self._stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already: `lost` tells
        except BaseException:
            self.kill()
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def lost(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the engine process {how}; its log has the cause"

    def wait(self, seconds: float | None = None) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._stdin.close()


class ChildLauncher:
    """Starts cores as child processes on this host."""

    def start(self, config: VllmConfig, addresses: Sequence[str]) -> ChildProcess:
        return ChildProcess(config, addresses)
