"""Several fronts before one core: whose a request is, and what of a step concerns whom.

A front is a process that serves users. A request and each of its outputs name the front that asked. A step's outputs go
to the fronts that asked; what concerns the engine as a whole goes to one of them, the recorder, so that it is counted
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from vllm.core.outputs import EngineCoreOutput
from vllm.engine.front_table import FrontTable
from vllm.engine.messages import StepOutput

RECORDER = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Which front this is, of how many."""

    index: int = 0
    count: int = 1

    @property
    def is_recorder(self) -> bool:
        return self.index == RECORDER

    def core_id(self, req_id: str) -> str:
        """The request's id in the core, unlike that of any other front: users may give the same id to several."""
        return req_id if self.count == 1 else f"{self.index}:{req_id}"

    def numbered(self, nth: int) -> int:
        """The number among all fronts' requests of this one's nth: no two are equal."""
        return nth * self.count + self.index


@dataclass(frozen=True, slots=True)
class Attachment:
    """How one of several fronts reaches a core that another process owns.

    address: prefix of the sockets that it binds. lost: why the core is gone, once it is.
    """

    place: Place
    table: FrontTable
    address: str
    lost: Callable[[], str | None]


def shares(step: StepOutput, num_fronts: int) -> Iterator[tuple[int, StepOutput]]:
    """What each of several fronts is to hear of a step; nothing for those that it does not concern."""
    outputs: list[list[EngineCoreOutput]] = [[] for _ in range(num_fronts)]
    for output in step.outputs:
        outputs[output.front].append(output)
    for front, own in enumerate(outputs):
        if front == RECORDER:
            yield front, msgspec.structs.replace(step, outputs=own)
        elif own:
            yield front, StepOutput(own)
