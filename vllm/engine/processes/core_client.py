"""How the front reaches an engine core: in the same process, in a child, or in a child of somebody else's.

`InprocClient` is driven by its caller, step by step. `ProcessClient` owns a core in a process of its own (`core_proc`,
started by a `launcher`) and a private directory with its sockets: an ended core is seen at once; one that shows no life
for STALL_SECONDS, or hangs in a step, is unhealthy by `check_health`, and well again when it goes on (`liveness`); one
that stays silent for GIVE_UP_SECONDS, or whose step takes longer than any may, is killed, and every request hears of
it. `AttachedClient` is one of several fronts before a core that another process owns, and is told of its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import zmq

from vllm import envs
from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.engine.core.core import CALLS, EngineCore
from vllm.engine.messages import EngineCoreRequest, Leave, Shutdown, StepOutput, encoder
from vllm.engine.processes.core_connection import CoreConnection
from vllm.engine.processes.fronts import Attachment
from vllm.engine.processes.launcher import ChildLauncher, Launcher
from vllm.engine.processes.private_directory import PrivateDirectory
from vllm.engine.processes.startup import StartCancelled, StartProgress
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.logger import init_logger
from vllm.runner.executor import NeuronExecutor

logger = init_logger(__name__)

GIVE_UP_SECONDS = 30.0
_GRACE_SECONDS = 5.0


class InprocClient:
    """An engine core in this process."""

    def __init__(self, config: VllmConfig) -> None:
        self.core = EngineCore(config, NeuronExecutor(config))
        self.capabilities: Capabilities = self.core.executor.capabilities
        self.executor_stats: dict[str, Any] = self.core.executor_stats()
        self._refused: list[Any] = []

    def add_request(self, request: EngineCoreRequest) -> None:
        refusal = self.core.add_request(request)
        if refusal is not None:
            self._refused.append(refusal)

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        self.core.set_grammar_tokenizer(tokenizer)

    def abort(self, req_ids: list[str]) -> None:
        """End requests; nothing more is heard of them."""
        self.core.abort(req_ids)

    def step(self) -> StepOutput:
        """What was refused since the last step, and the next step's outputs."""
        refused, self._refused = self._refused, []
        output = self.core.step() if self.core.has_work else StepOutput()
        output.outputs = refused + output.outputs
        return output

    def settle(self) -> None:
        """After everything was aborted: let the device side learn of it."""
        while self.core.has_work:
            self.core.step()

    def call(self, method: str, *args: Any) -> Any:
        """One of `core.CALLS`."""
        if method not in CALLS:
            raise ValueError(f"unknown call {method!r}; known: {', '.join(CALLS)}")
        return getattr(self.core, method)(*args)

    def shutdown(self) -> None:
        self.core.shutdown()


class ProcessClient(CoreConnection):
    """An engine core in a process of its own.

    Construction blocks until the core is ready; a child's log goes where this process's does. Raises EngineDeadError
    with the core's own words if it fails to start, StartCancelled if `progress` says so meanwhile.
    """

    def __init__(
        self,
        config: VllmConfig,
        progress: StartProgress | None = None,
        front_addresses: Sequence[str] = (),
        launcher: Launcher | None = None,
    ) -> None:
        """front_addresses: of several fronts that ask and are answered in this process's stead.
        launcher: where the core runs; by default in a child process."""
        progress = progress or StartProgress()
        self._directory = PrivateDirectory()
        address = f"ipc://{self._directory.path}/core"
        super().__init__(address)
        self.handle = (launcher or ChildLauncher()).start(config, [address, *front_addresses])
        try:
            progress.report("process")
            self.wait_until_ready(progress)
        except (StartCancelled, KeyboardInterrupt):
            self.handle.kill()
            self.shutdown()
            raise
        except BaseException:
            self.shutdown()
            raise

    def leave(self, front: int) -> None:
        """One of several fronts is gone: what it asked for is to be aborted."""
        with contextlib.suppress(zmq.Again):  # the core is gone, too
            self._input.send(encoder.encode(Leave(front)), zmq.NOBLOCK)

    def shutdown(self) -> None:
        """Stop the core, kindly at first, and remove the sockets. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self.handle.lost() is None:
            with contextlib.suppress(zmq.Again):  # it has not connected yet
                self._input.send(encoder.encode(Shutdown()), zmq.NOBLOCK)
            if not self.handle.wait(_GRACE_SECONDS):
                self.handle.kill()
        self.handle.close()
        self._close()
        self._directory.close()

    def _lost(self) -> str | None:
        return self.handle.lost()

    def _look(self, silence: float, step_age: float) -> None:
        limit = envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS
        if silence > GIVE_UP_SECONDS:
            self._give_up(f"the engine process showed no life for {silence:.0f} s")
        elif step_age > limit:
            self._give_up(f"a step of the engine took more than VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS={limit:g} s")

    def _give_up(self, reason: str) -> None:
        self.handle.kill()
        self._die(reason)

    def _die(self, reason: str) -> None:
        if self.dead_error is None and not self._closing:
            logger.error("the engine is dead: %s", reason)
        super()._die(reason)


class AttachedClient(CoreConnection):
    """A core that another process owns. Construction blocks until it is ready, and raises as `ProcessClient`'s does."""

    def __init__(self, attachment: Attachment, progress: StartProgress) -> None:
        self._attachment = attachment
        super().__init__(attachment.address, attachment.place.index)
        try:
            progress.report("process")
            self.wait_until_ready(progress)
        except BaseException:
            self.shutdown()
            raise

    def _lost(self) -> str | None:
        return self._attachment.lost()
