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
from vllm.engine.messages import StepOutput
from vllm.engine.place import RECORDER, Place
from vllm.engine.processes.front_table import FrontTable


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
