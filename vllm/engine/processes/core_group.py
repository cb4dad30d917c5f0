"""Several cores as one: each request goes to the core with the least work, and its outputs come back through the group.

Work is counted in tokens that are still to be computed: a request's prompt, and the output that it may ask for, less
what it has got. The count is kept here, by the one process that routes, so it is exact and never late. Cores with equal
work take turns.

A core that dies takes its own requests with it: each ends with an error that may be retried, and the others go on. The
group is dead when its last core is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.core.contract import Capabilities
from vllm.core.outputs import EngineCoreOutput
from vllm.engine.client import CoreClient
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.exceptions import EngineDeadError
from vllm.logger import init_logger

logger = init_logger(__name__)

_UNLIMITED_OUTPUT = 1024
"""Tokens of output that a request without max_tokens is taken to need."""


@dataclass(slots=True, eq=False)
class _Member:
    """A core of the group."""

    core: CoreClient
    requests: dict[str, int] = field(default_factory=dict)
    """Tokens that each of its unfinished requests still needs."""
    num_tokens: int = 0
    """Their sum."""

    def add(self, req_id: str, num_tokens: int) -> None:
        self.requests[req_id] = num_tokens
        self.num_tokens += num_tokens

    def take(self, req_id: str, num_tokens: int) -> None:
        taken = min(num_tokens, self.requests[req_id])
        self.requests[req_id] -= taken
        self.num_tokens -= taken

    def remove(self, req_id: str) -> None:
        self.num_tokens -= self.requests.pop(req_id, 0)


class CoreGroup:
    """A `CoreClient` over several. Used from one event loop."""

    def __init__(self, cores: Sequence[CoreClient]) -> None:
        """Raises ValueError for no core, or for cores that cannot do the same."""
        if not cores:
            raise ValueError("a group needs at least one core")
        self.capabilities: Capabilities = cores[0].capabilities
        if any(core.capabilities != self.capabilities for core in cores):
            raise ValueError("the cores of a group must be able to do the same")
        self._members = [_Member(core) for core in cores]
        self._alive = list(self._members)
        self._turn = 0
        self._receiving: dict[asyncio.Task[StepOutput], _Member] = {}

    @property
    def executor_stats(self) -> dict[str, Any]:
        return self._members[0].core.executor_stats

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Of the core that died last, when none is left."""
        errors = [member.core.dead_error for member in self._members]
        return errors[-1] if all(errors) else None

    def loads(self) -> list[int]:
        """Tokens that are still to be computed, by core; 0 for a dead one."""
        return [member.num_tokens for member in self._members]

    def add_request(self, request: EngineCoreRequest) -> None:
        """Raises EngineDeadError if no core is left."""
        max_tokens = request.max_tokens
        num_output = _UNLIMITED_OUTPUT if max_tokens is None else max_tokens
        for member in self._by_load():
            try:
                member.core.add_request(request)
            except EngineDeadError as error:  # `receive` will tell of its end
                logger.warning("an engine core takes no requests any more: %s", error)
                continue
            member.add(request.req_id, len(request.prompt_token_ids) + num_output)
            return
        raise self.dead_error or EngineDeadError("no core of the group takes requests")

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        for member in self._alive:
            member.core.set_grammar_tokenizer(tokenizer)

    def abort(self, req_ids: list[str]) -> None:
        for member in self._alive:
            if own := [req_id for req_id in req_ids if req_id in member.requests]:
                member.core.abort(own)

    async def call(self, method: str, *args: Any) -> Any:
        """Asks every core; the answer of the first. Raises what any of them raised."""
        answers = await asyncio.gather(*(member.core.call(method, *args) for member in self._alive))
        return answers[0] if answers else None

    def call_at_start(self, method: str) -> None:
        for member in self._alive:
            member.core.call_at_start(method)

    async def receive(self) -> StepOutput:
        """The next outputs of any core. A core that is gone ends its requests by an error, once."""
        for member in self._alive:
            if member not in self._receiving.values():
                self._receiving[asyncio.ensure_future(member.core.receive())] = member
        done, _ = await asyncio.wait(self._receiving, return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        member = self._receiving.pop(task)
        try:
            step = task.result()
        except EngineDeadError as error:
            return self._bury(member, error)
        self._count(member, step.outputs)
        return step

    def check_health(self) -> None:
        """Raises EngineDeadError if no core is well; one that is not is no reason while another serves."""
        faults: list[EngineDeadError] = []
        for member in self._members:
            try:
                member.core.check_health()
            except EngineDeadError as error:
                faults.append(error)
        if len(faults) == len(self._members):
            raise faults[-1]

    def shutdown(self) -> None:
        for task in self._receiving:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.cancel()
        self._receiving.clear()
        for member in self._members:
            member.core.shutdown()

    def _by_load(self) -> list[_Member]:
        """Those alive, the least loaded first; of equal ones, the one whose turn it is."""
        self._turn += 1
        start = self._turn % max(len(self._alive), 1)
        in_turn = self._alive[start:] + self._alive[:start]
        return sorted(in_turn, key=lambda member: member.num_tokens)

    def _count(self, member: _Member, outputs: list[EngineCoreOutput]) -> None:
        for output in outputs:
            if output.req_id not in member.requests:
                continue
            if output.finished:
                member.remove(output.req_id)
            else:
                member.take(output.req_id, len(output.new_token_ids))

    def _bury(self, member: _Member, error: EngineDeadError) -> StepOutput:
        """Raises the error if it was the last core."""
        self._alive.remove(member)
        if not self._alive:
            raise error
        logger.error("an engine core is dead, %d are left: %s", len(self._alive), error)
        message = f"the engine core that ran this request is gone; it may be sent again: {error}"
        ends = [EngineCoreOutput(req_id, [], finish_reason="error", error=message) for req_id in member.requests]
        for req_id in list(member.requests):
            member.remove(req_id)
        return StepOutput(ends)
