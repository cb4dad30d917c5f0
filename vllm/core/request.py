"""One request, and the queue of those that wait.

A request knows its tokens and how far their KV is computed; everything the scheduler does follows from the difference.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from enum import IntEnum

from vllm.core.block_pool import hash_block, root_hash
from vllm.core.contract import PromptImages, TokenLogprobs
from vllm.core.drafting.acceptance import RequestDrafts
from vllm.core.outputs import EngineCoreOutput, RequestTimes, SpecDecodeMetrics
from vllm.core.work import CorePooling, Work, max_tokens


class RequestStatus(IntEnum):
    WAITING = 0
    WAITING_FOR_KV = 1
    """Admitted, with all its KV blocks promised; a part of its prompt's KV is being loaded."""
    RUNNING = 2
    FINISHED_STOPPED = 3
    FINISHED_LENGTH = 4
    FINISHED_ABORTED = 5
    FINISHED_ERROR = 6

    @property
    def is_finished(self) -> bool:
        return self > RequestStatus.RUNNING

    @property
    def finish_reason(self) -> str | None:
        """As users see it: "stop", "length", "abort", "error"; None for a request that is not finished."""
        return _FINISH_REASONS.get(self)

    @classmethod
    def from_finish_reason(cls, reason: str) -> RequestStatus:
        """Raises ValueError for an unknown reason."""
        for status, name in _FINISH_REASONS.items():
            if name == reason:
                return status
        raise ValueError(f"unknown finish reason {reason!r}; known: {', '.join(_FINISH_REASONS.values())}")


_FINISH_REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
    RequestStatus.FINISHED_ERROR: "error",
}


class Request:
    """One generation, or one prompt of which a vector is made (`work`).

    prompt_token_ids: owned by the caller; neither it nor this class changes the list afterwards.
    arrival_time: monotonic seconds.
    priority: lower goes first, under the priority policy.
    front: the index of the front end that asked, among those of one core.
    has_grammar: each token needs its own mask, which only the tokens before it decide: nothing is drafted.
    lora_id, cache_salt, image_hashes: part of the identity of the request's KV: prefixes are shared only between equals
        (`block_pool.root_hash`).
    images: what stands for the prompt's placeholders.

    num_tokens: prompt and output so far. num_pending: output tokens that steps under way will bring, one each.
        num_computed_tokens: how many of both have their KV in block_ids or are being computed by steps under way.
    max_total_tokens, max_num_blocks: set by the scheduler at arrival: the length and the KV blocks it cannot exceed.
    num_hashed_blocks: leading blocks that the prefix cache knows.
    drafts: what became of its drafts.
    queue_key: its place in the queue, which it takes again when it is put back.
    num_external_tokens: how many of num_cached_tokens came from the KV store.
    num_kv_loads: blocks of its prompt that are still being loaded. num_loaded_blocks: leading blocks that were found in
        the pool or loaded; those behind them are computed, although some may have been loaded, too.
    """

    __slots__ = (
        "_block_hashes",
        "block_ids",
        "cache_salt",
        "drafts",
        "eos_token_ids",
        "front",
        "has_grammar",
        "images",
        "lora_id",
        "max_num_blocks",
        "max_total_tokens",
        "min_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_external_tokens",
        "num_hashed_blocks",
        "num_kv_loads",
        "num_loaded_blocks",
        "num_pending",
        "num_prompt_tokens",
        "num_tokens",
        "output_token_ids",
        "priority",
        "prompt_token_ids",
        "queue_key",
        "req_id",
        "status",
        "stop_reason",
        "stop_token_ids",
        "times",
        "work",
    )

    def __init__(
        self,
        req_id: str,
        prompt_token_ids: list[int],
        work: Work,
        arrival_time: float = 0.0,
        priority: int = 0,
        lora_id: int = 0,
        cache_salt: str | None = None,
        has_grammar: bool = False,
        images: PromptImages | None = None,
        front: int = 0,
    ) -> None:
        self.req_id = req_id
        self.front = front
        self.prompt_token_ids = prompt_token_ids
        self.work = work
        self.eos_token_ids: frozenset[int] = frozenset()
        self.stop_token_ids: frozenset[int] = frozenset()
        self.min_tokens = 0
        if not isinstance(work, CorePooling):
            self.eos_token_ids = frozenset(work.eos_token_ids)
            self.stop_token_ids = frozenset(work.stop_token_ids)
            self.min_tokens = work.min_tokens
        self.priority = priority
        self.lora_id = lora_id
        self.cache_salt = cache_salt
        self.has_grammar = has_grammar
        self.images = images
        self.times = RequestTimes(arrival=arrival_time)

        self.status = RequestStatus.WAITING
        self.queue_key: tuple[int, float, int] | None = None
        self.stop_reason: int | None = None
        self.output_token_ids: list[int] = []
        self.drafts = RequestDrafts()
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens
        self.num_pending = 0
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_external_tokens = 0
        self.num_kv_loads = 0
        self.num_loaded_blocks = 0
        self.max_total_tokens = 0

        self.block_ids: list[int] = []
        self.max_num_blocks = 0
        self.num_hashed_blocks = 0
        self._block_hashes: list[bytes] = []

    def __repr__(self) -> str:
        return (
            f"Request({self.req_id!r}, {self.status.name}, prompt={self.num_prompt_tokens}, tokens={self.num_tokens}, "
            f"computed={self.num_computed_tokens}, blocks={self.block_ids})"
        )

    @property
    def max_tokens(self) -> int | None:
        """Most output tokens; None: what the context holds."""
        return max_tokens(self.work)

    @property
    def needs_all_states(self) -> bool:
        """Whether all of the prompt is to be computed, whatever of it is cached."""
        work = self.work
        if work.skip_reading_prefix_cache:
            return True
        return work.needs_all_states if isinstance(work, CorePooling) else work.prompt_logprobs is not None

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_expected_tokens(self) -> int:
        """Tokens there will be when all steps under way have ended, unless one of their tokens ends the request."""
        return self.num_tokens + self.num_pending

    @property
    def will_end(self) -> bool:
        """Whether it ends with the steps under way, since no more tokens fit."""
        return self.num_expected_tokens >= self.max_total_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the prompt is still to be scheduled."""
        return self.num_computed_tokens < self.num_prompt_tokens

    def append(self, token_ids: list[int]) -> int:
        """Take in sampled tokens, up to and including the first that ends the request; returns how many were taken.

        A stop token before min_tokens other output tokens is an ordinary token. Sets status and stop_reason.
        """
        min_tokens = self.min_tokens
        for taken, token_id in enumerate(token_ids, 1):
            may_stop = self.num_tokens - self.num_prompt_tokens >= min_tokens
            self.output_token_ids.append(token_id)
            self.num_tokens += 1
            if may_stop and token_id in self.eos_token_ids:
                self.status = RequestStatus.FINISHED_STOPPED
                return taken
            if may_stop and token_id in self.stop_token_ids:
                self.status = RequestStatus.FINISHED_STOPPED
                self.stop_reason = token_id
                return taken
            if self.num_tokens >= self.max_total_tokens:
                self.status = RequestStatus.FINISHED_LENGTH
                return taken
        return len(token_ids)

    @property
    def image_hashes(self) -> tuple[str, ...]:
        """One an image of the prompt, in order."""
        return self.images.hashes if self.images else ()

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Known tokens at positions start to stop - 1."""
        prompt_len = self.num_prompt_tokens
        if stop <= prompt_len:
            return self.prompt_token_ids[start:stop]
        output = self.output_token_ids[max(start - prompt_len, 0) : stop - prompt_len]
        return self.prompt_token_ids[start:] + output if start < prompt_len else output

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Hashes of the first num_blocks full blocks of known tokens; computed once each."""
        hashes = self._block_hashes
        while len(hashes) < num_blocks:
            start = len(hashes) * block_size
            parent = hashes[-1] if hashes else root_hash(self.lora_id, self.cache_salt, self.image_hashes)
            hashes.append(hash_block(parent, self.tokens_between(start, start + block_size)))
        return hashes[:num_blocks]

    def cached_tokens(self, num_blocks: int, block_size: int) -> int:
        """Prompt tokens that need no computing when the first num_blocks blocks are there. The last one always is."""
        return min(num_blocks * block_size, self.num_prompt_tokens - 1)

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Hash of full block `index`."""
        if index >= len(self._block_hashes):
            self.block_hashes(index + 1, block_size)
        return self._block_hashes[index]

    def output(
        self,
        new_token_ids: list[int],
        logprobs: list[TokenLogprobs] | None = None,
        prompt_logprobs: list[TokenLogprobs] | None = None,
        error: str | None = None,
        *,
        with_times: bool = True,
    ) -> EngineCoreOutput:
        """What the front is told of this request now."""
        return EngineCoreOutput(
            self.req_id,
            new_token_ids,
            logprobs,
            prompt_logprobs,
            finish_reason=self.status.finish_reason,
            stop_reason=self.stop_reason,
            num_cached_tokens=self.num_cached_tokens,
            error=error,
            times=self.times if with_times else None,
            spec_decode_metrics=self._spec_decode_metrics(),
            num_external_tokens=self.num_external_tokens,
            front=self.front,
        )

    def _spec_decode_metrics(self) -> SpecDecodeMetrics | None:
        drafts = self.drafts
        if not drafts.num_drafts:
            return None
        return SpecDecodeMetrics(drafts.num_drafts, drafts.num_drafted, drafts.num_accepted)


class RequestQueue:
    """Waiting requests in order of (priority, arrival, insertion), or of insertion alone.

    push and pop are O(log n). remove is O(1): the entry stays in the heap, empty, until it comes up or until empty
    entries outnumber the others, when the heap is rebuilt.

    num_tokens: prompt tokens of all requests in the queue.
    """

    __slots__ = ("_by_priority", "_count", "_entries", "_heap", "num_tokens")

    def __init__(self, *, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._heap: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}
        self._count = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._entries

    def get(self, req_id: str) -> Request | None:
        entry = self._entries.get(req_id)
        return None if entry is None else entry.request

    def __iter__(self) -> Iterator[Request]:
        """The requests in the queue, in no particular order."""
        return (entry.request for entry in self._entries.values() if entry.request is not None)

    def push(self, request: Request) -> None:
        request.queue_key = request.queue_key or self._key(request)
        entry = _Entry(request.queue_key, request)
        self._entries[request.req_id] = entry
        self.num_tokens += request.num_prompt_tokens
        heapq.heappush(self._heap, entry)

    def peek(self) -> Request | None:
        """The request to run next, left in the queue; None if there is none."""
        while self._heap:
            request = self._heap[0].request
            if request is not None:
                return request
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Request:
        """Take the request to run next. Raises IndexError if there is none."""
        request = self.peek()
        if request is None:
            raise IndexError("pop from an empty queue")
        heapq.heappop(self._heap)
        self._forget(request)
        return request

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands. Raises KeyError if it is not here."""
        self._entries[request.req_id].request = None
        self._forget(request)
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [entry for entry in self._heap if entry.request is not None]
            heapq.heapify(self._heap)

    def _forget(self, request: Request) -> None:
        del self._entries[request.req_id]
        self.num_tokens -= request.num_prompt_tokens

    def _key(self, request: Request) -> tuple[int, float, int]:
        self._count += 1
        if self._by_priority:
            return (request.priority, request.times.arrival, self._count)
        return (0, 0.0, self._count)


class _Entry:
    """A place in the heap; request is None once it was removed."""

    __slots__ = ("key", "request")

    def __init__(self, key: tuple[int, float, int], request: Request) -> None:
        self.key = key
        self.request: Request | None = request

    def __lt__(self, other: _Entry) -> bool:
        return self.key < other.key
