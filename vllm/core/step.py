"""A step under way, as the scheduler keeps it between `schedule` and `update_from_output`."""

from __future__ import annotations

from vllm.core.contract import SchedulerOutput
from vllm.core.request import Request


class Step:
    """A step under way. progress: its requests, each with how many of its tokens it will have computed.

    started: when it was scheduled. has_streams: sequences were able to decode. decodes, has_prompts: what is in it.
    decodes_only: nothing but decodes is in it, so that drafts may be.
    """

    __slots__ = ("decodes", "decodes_only", "has_prompts", "has_streams", "num_tokens", "output", "progress", "started")

    def __init__(self, output: SchedulerOutput, started: float) -> None:
        self.output = output
        self.started = started
        self.progress: list[tuple[Request, int]] = []
        self.num_tokens = 0
        self.has_streams = self.decodes = self.has_prompts = self.decodes_only = False

    def add(self, request: Request, num_tokens: int) -> None:
        self.output.num_scheduled_tokens[request.req_id] = num_tokens
        self.num_tokens += num_tokens
        request.num_computed_tokens += num_tokens
        request.num_pending += request.num_computed_tokens == request.num_expected_tokens
        self.progress.append((request, request.num_computed_tokens))
