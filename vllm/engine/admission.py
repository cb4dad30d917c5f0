"""The door of the queue: --max-num-queued-reqs and --max-num-queued-tokens.

They bound what waits in the engine. Several fronts before one engine count together, in their table, and let in by
turns, so the bounds hold exactly however requests are spread.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm.config import SchedulerConfig
from vllm.engine.processes.front_table import Column
from vllm.engine.processes.fronts import Attachment
from vllm.engine.text.output_processor import OutputProcessor


class QueueFault(NamedTuple):
    """bound: the option that turned a request away. message: for its client."""

    bound: str
    message: str


class Door:
    """Of one front that is alone: what it knows is all there is."""

    def __init__(self, limits: SchedulerConfig, outputs: OutputProcessor) -> None:
        self._limits = limits
        self._outputs = outputs

    def admit(self, num_new: int, prompt_len: int) -> QueueFault | None:
        """Let `num_new` requests of the core with a prompt of `prompt_len` tokens in; or why not."""
        return self._fault(self._outputs.num_core_requests, self._outputs.num_waiting_tokens, num_new, prompt_len)

    def publish(self) -> None:
        """What waits has changed otherwise than by `admit`."""

    def _fault(self, num_requests: int, num_tokens: int, num_new: int, prompt_len: int) -> QueueFault | None:
        limits = self._limits
        max_reqs, max_tokens = limits.max_num_queued_reqs, limits.max_num_queued_tokens
        num_waiting = num_requests + num_new - (limits.max_num_seqs or 0)
        if max_reqs is not None and num_waiting > max_reqs:
            message = f"the queue is full: {max_reqs} requests wait. Try again later."
            return QueueFault("max_num_queued_reqs", message)
        if max_tokens is not None and num_waiting > 0 and num_tokens + num_new * prompt_len > max_tokens:
            message = f"the queue is full: at most {max_tokens} prompt tokens wait. Try again later."
            return QueueFault("max_num_queued_tokens", message)
        return None


class SharedDoor(Door):
    """Of one of several fronts."""

    def __init__(self, limits: SchedulerConfig, outputs: OutputProcessor, attachment: Attachment) -> None:
        super().__init__(limits, outputs)
        self._table = attachment.table
        self._front = attachment.place.index

    def admit(self, num_new: int, prompt_len: int) -> QueueFault | None:
        table = self._table
        with table.locked():
            fault = self._fault(table.total(Column.REQUESTS), table.total(Column.WAITING_TOKENS), num_new, prompt_len)
            if fault is None:
                table.add(self._front, Column.REQUESTS, num_new)
                table.add(self._front, Column.WAITING_TOKENS, num_new * prompt_len)
        return fault

    def publish(self) -> None:
        self._table.set(self._front, Column.REQUESTS, self._outputs.num_core_requests)
        self._table.set(self._front, Column.WAITING_TOKENS, self._outputs.num_waiting_tokens)


def make_door(limits: SchedulerConfig, outputs: OutputProcessor, attachment: Attachment | None) -> Door:
    """A queue without bounds needs no table."""
    is_bounded = limits.max_num_queued_reqs is not None or limits.max_num_queued_tokens is not None
    return Door(limits, outputs) if attachment is None or not is_bounded else SharedDoor(limits, outputs, attachment)
