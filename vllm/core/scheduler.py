"""Decides what runs: which requests are admitted, how many tokens of each the next step computes, and when one ends.

Only what every model and every target needs stands here; a rarer feature lives in a file of its own and is called.

There are no phases. A request catches up `num_computed_tokens` with its known tokens; whole prompts, pieces of prompts,
prefix hits and decodes all follow from that rule. Steps in which every request decodes may speculate: the device drafts
as many tokens as it is granted (`drafting.DraftController`), verifies them and returns one token or several.

Admission is by promise: a request starts only when a row is free and the KV blocks of its whole future (prompt,
max_tokens and lookahead, within max_model_len) can be promised to it. So a running request always has what it needs,
and nothing here takes anything away from one.

Order is first come, first served, or by priority (lower first, then arrival). The head of the queue is never
overtaken: if it does not fit yet, nothing behind it starts.

A prefix is computed once: while a running request still has to compute the block that comes next in the head's prompt,
the head waits for it, and starts from the prefix cache. A prompt whose blocks are all cached computes its last token
again, to sample from, and nothing else; the KV of that token is there already and is not written.

A prefix that is in the KV store but not in the pool is loaded into the blocks of the request, which has its row and
its promise by then and waits apart from the queue: neither running sequences nor the queue wait for it (`kv_traffic`).

Steps, by what the target can run (`SchedulerConfig`):
- Without mixed steps a step is either prompts or decodes, prompts first, at most `prefill_batch_size` of them. While
  sequences are able to decode, at most `max_consecutive_prefills` prompt steps pass between two decode steps.
- With mixed steps all decodes come first, then prompts in pieces, into what is left of the token budget.
- `max_prefill_tokens` bounds the prompt tokens of a step and lets prompts be computed in pieces. 0: no bound of its
  own, and prompts are whole unless steps are mixed.
- Every sequence able to decode is in every step that decodes: with contiguous KV a missing row would be overwritten.

Steps are updated in the order in which they were scheduled. A step may be scheduled before the last one is updated
(`can_run_ahead`): the tokens that steps under way will sample are counted (`Request.num_pending`), and the device side
fills them in. A request may end at any time, also between its step's schedule and update; what that step computes for
it is then dropped, and its blocks, free again, are nobody's before that step has run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from vllm.config import VllmConfig
from vllm.core.block_pool import BlockPool, IntegrityError
from vllm.core.contract import (
    CachedRequest,
    ModelRunnerOutput,
    NewRequest,
    SchedulerOutput,
    TokenLogprobs,
    Tokens,
    Vector,
)
from vllm.core.drafting.controller import DraftController
from vllm.core.integrity import find_faults
from vllm.core.kv_traffic import KVTraffic
from vllm.core.lengths import LengthLimits
from vllm.core.outputs import EngineCoreOutput, SchedulerStats
from vllm.core.request import Request, RequestQueue, RequestStatus
from vllm.core.stalls import StallMeter
from vllm.core.step import Step


class Scheduler:
    """Requests -> `SchedulerOutput`; `ModelRunnerOutput` -> progress.

    Owned by one thread. `clock` gives monotonic seconds.
    """

    def __init__(self, config: VllmConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError if the config is not resolved or its limits exclude one another."""
        limits, cache = config.scheduler_config, config.cache_config
        if limits.max_num_seqs is None or cache.block_size is None:
            raise ValueError("the config is not resolved: max_num_seqs or block_size is unknown")
        self.max_model_len = config.model_config.max_len
        self.max_prompt_len = limits.max_prompt_len or self.max_model_len
        self.max_num_seqs = limits.max_num_seqs
        self.prefill_batch_size = limits.prefill_batch_size
        self.max_prefill_tokens = limits.max_prefill_tokens
        self.max_consecutive_prefills = limits.max_consecutive_prefills
        self.mixed_steps = limits.mixed_steps
        self.num_lookahead_tokens = limits.num_lookahead_tokens
        self.block_size = cache.block_size
        self.enable_prefix_caching = bool(cache.enable_prefix_caching)
        self.max_num_batched_tokens = limits.max_num_batched_tokens or max(
            self.max_num_seqs * (1 + self.num_lookahead_tokens), self.prefill_batch_size * self.max_model_len
        )
        self._check_limits()
        speculation = config.speculative_config
        adaptive, max_draft_len = (speculation.adaptive, speculation.max_model_len) if speculation else (True, None)
        self._drafts = DraftController(self.num_lookahead_tokens, adaptive=adaptive)
        self._max_draft_len = max_draft_len or self.max_model_len
        self.stalls = StallMeter()

        saves_evicted = cache.kv_offloading_size is not None
        self.pool = BlockPool(cache.num_blocks, self.block_size, tells_evicted=saves_evicted)
        self.kv_traffic = KVTraffic(
            self.pool,
            saves_evicted=saves_evicted,
            saves_computed=cache.kv_offloading_dir is not None,
            max_loads=max(self.max_num_batched_tokens // self.block_size, 1),
        )
        self._loading = self.kv_traffic.requests
        self._lengths = LengthLimits(
            max_model_len=self.max_model_len,
            max_prompt_len=self.max_prompt_len,
            max_step_tokens=None if self._prompts_in_pieces else self.max_num_batched_tokens,
            num_lookahead_tokens=self.num_lookahead_tokens,
            block_size=self.block_size,
            num_blocks=self.pool.num_blocks,
        )
        self._clock = clock
        self._serves_adapters = False
        self._waiting = RequestQueue(by_priority=limits.scheduling_policy == "priority")
        self._running: dict[str, Request] = {}
        self._finished_req_ids: list[str] = []
        self._steps: deque[Step] = deque()
        self._num_consecutive_prefills = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._external_queries = 0
        self._external_hits = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, and those whose KV is being loaded."""
        return len(self._waiting) + len(self._loading)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the waiting requests."""
        return self._waiting.num_tokens + sum(request.num_prompt_tokens for request in self._loading.values())

    def requests(self) -> Iterator[Request]:
        """Unfinished requests, waiting or running."""
        yield from self._waiting
        yield from self._loading.values()
        yield from self._running.values()

    def has_unfinished_requests(self) -> bool:
        return bool(self._running or self._loading) or len(self._waiting) > 0

    @property
    def can_run_ahead(self) -> bool:
        """Whether the next step can be scheduled although the last one is not updated yet.

        Not where a step's number of tokens is the device's choice, nor where blocks are loaded into. And with
        contiguous KV not while a row is about to end: the device still has it, and the decode would miss it.
        """
        if self.num_lookahead_tokens or self.kv_traffic.enabled:
            return False
        return self.block_size < self.max_model_len or not any(each.will_end for each in self._running.values())

    def has_finished_requests(self) -> bool:
        """Whether ended requests left work: the device side is to be told, blocks are to be saved, loads to end."""
        return bool(self._finished_req_ids) or self.kv_traffic.has_saves or self.kv_traffic.has_loads

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises ValueError for one that can never run, saying why."""
        self._check_id(request.req_id)
        self._lengths.plan(request)
        request.times.queued = self._clock()
        self._serves_adapters |= request.lora_id != 0
        self._waiting.push(request)

    def finish_request(self, req_id: str, reason: str = "abort", error: str | None = None) -> EngineCoreOutput | None:
        """End a request now, wherever it is; its row and blocks are free at once.

        reason: "abort", "stop", "length" or "error". Returns its last output, None if there is no such request.
        """
        status = RequestStatus.from_finish_reason(reason)
        if (request := self._waiting.get(req_id)) is not None:
            self._waiting.remove(request)
            request.status = status
        elif (request := self._loading.pop(req_id, None)) is not None:
            request.status = status
            self._give_back(request)
        elif (request := self._running.get(req_id)) is not None:
            request.status = status
            self._release(request)
        else:
            return None
        return request.output([], error=error)

    def schedule(self) -> SchedulerOutput:
        """The next step. Without work it holds at most the ids of finished requests."""
        output = SchedulerOutput(finished_req_ids=self._finished_req_ids)
        self._finished_req_ids = []
        step = Step(output, self._clock())
        prefilling = [request for request in self._running.values() if request.is_prefilling]
        decoding = [request for request in self._running.values() if not request.is_prefilling]
        step.has_streams = bool(decoding)
        if self.mixed_steps:
            self._schedule_decodes(step, decoding)
            self._schedule_prompts(step, prefilling)
        else:
            self._schedule_one_kind(step, prefilling, decoding)
        if decoding and self.num_lookahead_tokens:
            self._grant_drafts(step)
        if self.kv_traffic.enabled:
            self.kv_traffic.save(self.pool.take_evicted())
            output.kv_orders = self.kv_traffic.take_orders()
            output.waits_for_kv = self.kv_traffic.has_loads and not step.progress
        if step.progress:
            self._steps.append(step)
        return output

    def sampling_req_ids(self) -> list[str]:
        """Requests that sample in the step scheduled last: those whose tokens are then all computed."""
        if not self._steps:
            return []
        return [
            request.req_id for request, num_computed in self._steps[-1].progress if num_computed >= request.num_tokens
        ]

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_output: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Take in what a step produced; one output for each request that has something to tell.

        Raises ValueError if `scheduler_output` is not the oldest step that is still to be updated.
        """
        if self.kv_traffic.enabled:
            self.kv_traffic.update(model_output)
        if not scheduler_output.num_scheduled_tokens:
            return []
        if not self._steps or self._steps[0].output is not scheduler_output:
            raise ValueError("a step was updated twice, or before an older one")
        step = self._steps.popleft()
        now = self._clock()
        self.stalls.note(
            step.started,
            now,
            has_prompts=step.has_prompts,
            has_streams=step.has_streams,
            decodes=step.decodes,
        )
        outputs = []
        if step.decodes_only:
            self._observe_drafts(step, model_output)
        for request, num_computed in step.progress:
            if request.status is RequestStatus.RUNNING:
                output = self._update_request(request, num_computed, model_output, now)
                if output is not None:
                    outputs.append(output)
        return outputs

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_waiting_tokens=self.num_waiting_tokens,
            kv_cache_usage=self.pool.usage,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            spec_num_drafts=self._drafts.num_drafts,
            spec_num_draft_tokens=self._drafts.num_drafted,
            spec_num_accepted_tokens=self._drafts.num_accepted,
            spec_num_accepted_by_position=tuple(self._drafts.accepted_by_position),
            external_prefix_cache_queries=self._external_queries,
            external_prefix_cache_hits=self._external_hits,
            running_lora_ids=self._lora_ids(self._running.values()),
            waiting_lora_ids=self._lora_ids([*self._waiting, *self._loading.values()]),
        )

    def _lora_ids(self, requests: Iterable[Request]) -> tuple[int, ...]:
        if not self._serves_adapters:
            return ()
        return tuple(sorted({request.lora_id for request in requests if request.lora_id}))

    def reset_prefix_cache(self, reset_store: bool = False) -> None:
        """Forget all prefixes. What is running stays as it is and adds nothing to the cache any more; a request that
        waits for KV is put back into the queue.

        reset_store: the KV store is emptied too.
        """
        for request in self._loading.values():
            request.status = RequestStatus.WAITING
            self._give_back(request)
            self._waiting.push(request)
        self._loading.clear()
        self.pool.reset_prefix_cache()
        if reset_store:
            self.kv_traffic.reset()
        for request in self._running.values():
            request.num_hashed_blocks = request.max_num_blocks

    def check_integrity(self) -> None:
        """Raises IntegrityError for a leaked row, block, promise or queue entry. For tests and debugging."""
        if faults := find_faults(self._waiting, self._running, self.kv_traffic, self.pool, self.max_num_seqs):
            raise IntegrityError("; ".join(faults))

    def _schedule_one_kind(self, step: Step, prefilling: list[Request], decoding: list[Request]) -> None:
        if not decoding or self._num_consecutive_prefills < self.max_consecutive_prefills:
            self._schedule_prompts(step, prefilling)
        if step.progress and decoding:
            self._num_consecutive_prefills += 1
            return
        self._num_consecutive_prefills = 0
        if not step.progress:
            self._schedule_decodes(step, decoding)

    def _schedule_decodes(self, step: Step, requests: list[Request]) -> None:
        for request in requests:
            num_tokens = request.num_expected_tokens - request.num_computed_tokens
            if num_tokens and not request.will_end:
                step.decodes = True
                self._schedule_known(step, request, num_tokens)

    def _grant_drafts(self, step: Step) -> None:
        """Let the device draft, if the step is one of decodes alone."""
        requests = [request for request, _ in step.progress]
        step.decodes_only = bool(requests) and all(request.num_output_tokens for request in requests)
        if not step.decodes_only:
            return
        rows = [(request.drafts, self._draft_room(request)) for request in requests]
        counts = self._drafts.grant(rows, self.max_num_batched_tokens // len(rows) - 1)
        step.output.num_draft_tokens = {
            request.req_id: count for request, count in zip(requests, counts, strict=True) if count
        }

    def _draft_room(self, request: Request) -> int:
        """Drafts that can become output: one sampled token follows the last of them. None under a grammar."""
        if request.has_grammar:
            return 0
        return min(request.max_total_tokens, self._max_draft_len) - request.num_tokens - 1

    def _observe_drafts(self, step: Step, result: ModelRunnerOutput) -> None:
        rows = []
        for request, _ in step.progress:
            got = result.results.get(request.req_id)
            drafted, taken = (got.num_drafted, len(got.token_ids)) if isinstance(got, Tokens) else (0, 0)
            rows.append((request.drafts, drafted, max(min(taken - 1, drafted), 0)))
        self._drafts.observe(rows, result.device_seconds, result.num_caught_up)

    def _schedule_prompts(self, step: Step, prefilling: list[Request]) -> None:
        """Go on with prompts under way, then admit."""
        budget = self.max_num_batched_tokens - step.num_tokens
        if self.max_prefill_tokens:
            budget = min(budget, self.max_prefill_tokens)
        num_prompts = self.prefill_batch_size
        for request in prefilling[:num_prompts]:
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            if not num_tokens:
                return
            step.has_prompts = True
            self._schedule_known(step, request, num_tokens)
            budget -= num_tokens
        num_free = max(num_prompts - len(prefilling), 0)
        for request in self.kv_traffic.loaded_requests()[:num_free]:
            num_tokens = self._start_loaded(step, request, budget)
            if not num_tokens:
                return
            budget -= num_tokens
            num_free -= 1
        while num_free and budget:
            num_admitted = self._admit_next(step, budget)
            if num_admitted is None:
                return
            budget -= num_admitted
            num_free -= num_admitted > 0

    def _schedule_known(self, step: Step, request: Request, num_tokens: int) -> None:
        """Schedule tokens of a request that the device side already holds."""
        req_id, start = request.req_id, request.num_computed_tokens
        new_block_ids = self._allocate(request, start + num_tokens)
        step.output.cached_requests.append(CachedRequest(req_id, start, new_block_ids))
        step.add(request, num_tokens)

    def _admit_next(self, step: Step, budget: int) -> int | None:
        """Admit the head of the queue if all it needs is there.

        Returns how many of its tokens are scheduled: 0 if it left the queue and waits for KV. None: it stays.
        """
        request = self._waiting.peek()
        if request is None or len(self._running) + len(self._loading) >= self.max_num_seqs:
            return None
        cached_block_ids = self._match_prefix(request)
        if self._is_being_computed(request, len(cached_block_ids)):
            return None
        stored = self._stored_prefix(request, len(cached_block_ids)) if self.kv_traffic.enabled else []
        if not stored and not self._tokens_that_fit(request, len(cached_block_ids), budget):
            return None
        num_promised = request.max_num_blocks - len(cached_block_ids)
        if num_promised + self.pool.count_free(cached_block_ids) > self.pool.num_available:
            return None
        self.pool.hold(cached_block_ids)
        self.pool.promise(num_promised)
        self._waiting.pop()
        request.block_ids = cached_block_ids
        request.num_hashed_blocks = request.num_loaded_blocks = len(cached_block_ids)
        if stored:
            self.kv_traffic.load(request, stored)
            return 0
        return self._start(step, request, budget)

    def _tokens_that_fit(self, request: Request, num_cached_blocks: int, budget: int) -> int:
        """Prompt tokens behind the cached ones that a step takes; 0 if the prompt must be whole and does not fit."""
        num_tokens = request.num_tokens - request.cached_tokens(num_cached_blocks, self.block_size)
        if num_tokens <= budget:
            return num_tokens
        return budget if self._prompts_in_pieces else 0

    def _start(self, step: Step, request: Request, budget: int) -> int:
        """Run a request that holds the blocks of its cached prefix and the promise of all others."""
        num_tokens = self._tokens_that_fit(request, request.num_loaded_blocks, budget)
        request.status = RequestStatus.RUNNING
        request.times.scheduled = self._clock()
        num_cached_tokens = request.cached_tokens(request.num_loaded_blocks, self.block_size)
        request.num_cached_tokens = request.num_computed_tokens = num_cached_tokens
        self._running[request.req_id] = request
        if self._reads_prefix_cache(request):
            self._count_hits(request)
        step.has_prompts = True
        self._allocate(request, num_cached_tokens + num_tokens)
        step.output.new_requests.append(
            NewRequest(
                request.req_id,
                request.prompt_token_ids,
                request.work,
                request.block_ids.copy(),
                num_cached_tokens,
                request.lora_id,
                request.images,
            )
        )
        step.add(request, num_tokens)
        return num_tokens

    def _count_hits(self, request: Request) -> None:
        num_local = request.num_cached_tokens - request.num_external_tokens
        self._prefix_cache_queries += request.num_prompt_tokens
        self._prefix_cache_hits += num_local
        if self.kv_traffic.enabled:
            self._external_queries += request.num_prompt_tokens - num_local
            self._external_hits += request.num_external_tokens

    def _allocate(self, request: Request, num_tokens: int) -> list[int]:
        """Take promised blocks until they hold num_tokens and the lookahead; returns the new ones."""
        num_blocks = -(-(num_tokens + self.num_lookahead_tokens) // self.block_size)
        num_new = min(num_blocks, request.max_num_blocks) - len(request.block_ids)
        if num_new <= 0:
            return []
        block_ids = self.pool.allocate(num_new)
        request.block_ids.extend(block_ids)
        return block_ids

    def _release(self, request: Request) -> None:
        """Give back all that a running request holds; its status says why."""
        del self._running[request.req_id]
        self._finished_req_ids.append(request.req_id)
        self._give_back(request)

    def _give_back(self, request: Request) -> None:
        self.pool.withdraw(request.max_num_blocks - len(request.block_ids))
        self.pool.free(request.block_ids)
        request.block_ids = []

    def _update_request(
        self, request: Request, num_computed: int, result: ModelRunnerOutput, now: float
    ) -> EngineCoreOutput | None:
        req_id, samples = request.req_id, num_computed >= request.num_tokens
        request.num_pending -= samples
        if req_id in result.errors:
            return self.finish_request(req_id, "error", result.errors[req_id])
        prompt_logprobs = result.prompt_logprobs.get(req_id)
        if not samples:
            self._cache_blocks(request, num_computed)
            return request.output([], None, prompt_logprobs, with_times=False) if prompt_logprobs else None
        got = result.results.get(req_id)
        if isinstance(got, Vector):
            return self._take_vector(request, got, now)
        if got is None or not got.token_ids:
            return self.finish_request(req_id, "error", "the device returned no token for this request")
        return self._take_tokens(request, got, prompt_logprobs, now)

    def _take_vector(self, request: Request, got: Vector, now: float) -> EngineCoreOutput:
        request.times.first_token = request.times.last_token = now
        request.status = RequestStatus.FINISHED_STOPPED
        self._cache_blocks(request, request.num_prompt_tokens)
        self._release(request)
        output = request.output([])
        output.vector = got.values
        return output

    def _take_tokens(
        self, request: Request, got: Tokens, prompt_logprobs: list[TokenLogprobs] | None, now: float
    ) -> EngineCoreOutput:
        """Append sampled tokens. The KV of all but the last is computed: those before it are accepted drafts."""
        token_ids, logprobs, times = got.token_ids, got.logprobs, request.times
        num_taken = request.append(token_ids)
        request.num_computed_tokens = request.num_expected_tokens - 1
        self._cache_blocks(request, request.num_tokens - 1)
        is_first = not times.first_token
        if is_first:
            times.first_token = now
        times.last_token = now
        if num_taken < len(token_ids):
            token_ids = token_ids[:num_taken]
            logprobs = logprobs and logprobs[:num_taken]
        finished = request.status is not RequestStatus.RUNNING
        if finished:
            self._release(request)
        return request.output(token_ids, logprobs, prompt_logprobs, with_times=is_first or finished)

    def _reads_prefix_cache(self, request: Request) -> bool:
        """Not where the hidden states of all of the prompt are needed, for its log-probabilities or for their mean."""
        return self.enable_prefix_caching and not request.needs_all_states

    def _match_prefix(self, request: Request) -> list[int]:
        """Blocks that carry the beginning of the prompt, or all of it."""
        if not self._reads_prefix_cache(request):
            return []
        return self.pool.match_prefix(request.block_hashes(self._num_shareable_blocks(request), self.block_size))

    def _is_being_computed(self, request: Request, index: int) -> bool:
        """Whether block `index` of a waiting prompt is one that a running prompt has, and has not computed yet."""
        if index >= self._num_shareable_blocks(request) or not self._reads_prefix_cache(request):
            return False
        wanted = request.block_hash(index, self.block_size)
        return self.kv_traffic.is_loading(wanted) or any(
            other.num_hashed_blocks <= index < other.num_prompt_tokens // self.block_size
            and other.block_hash(index, self.block_size) == wanted
            for other in (*self._running.values(), *self._loading.values())
        )

    def _stored_prefix(self, request: Request, num_cached: int) -> list[bytes]:
        """Hashes of the blocks behind the first `num_cached` that the KV store has of the prompt."""
        if not self._reads_prefix_cache(request):
            return []
        self.kv_traffic.save(self.pool.take_evicted())
        hashes = request.block_hashes(self._num_shareable_blocks(request), self.block_size)
        return self.kv_traffic.stored_beginning(hashes[num_cached:])

    def _start_loaded(self, step: Step, request: Request, budget: int) -> int:
        """Run a request whose KV is there; 0 if its prompt must be whole and does not fit into this step."""
        if not budget or not self._tokens_that_fit(request, request.num_loaded_blocks, budget):
            return 0
        del self._loading[request.req_id]
        return self._start(step, request, budget)

    def _num_shareable_blocks(self, request: Request) -> int:
        """Full blocks of the prompt; not the one that begins with its last token, which is always computed."""
        return (request.num_prompt_tokens - (self.block_size == 1)) // self.block_size

    def _cache_blocks(self, request: Request, num_computed: int) -> None:
        if not self.enable_prefix_caching:
            return
        start, stop = request.num_hashed_blocks, num_computed // self.block_size
        if start < stop:
            hashes = request.block_hashes(stop, self.block_size)
            self.pool.cache_full_blocks(request.block_ids[start:stop], hashes[start:])
            request.num_hashed_blocks = stop
            if self.kv_traffic.saves_computed:
                self.kv_traffic.save(zip(hashes[start:], request.block_ids[start:stop], strict=True))

    @property
    def _prompts_in_pieces(self) -> bool:
        return self.mixed_steps or self.max_prefill_tokens > 0

    def _check_limits(self) -> None:
        counts = {
            "max_num_seqs": self.max_num_seqs,
            "prefill_batch_size": self.prefill_batch_size,
            "max_consecutive_prefills": self.max_consecutive_prefills,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name}={value} leaves nothing to run; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than a decode step of all "
                f"max_num_seqs={self.max_num_seqs} sequences takes; it must be at least {self.max_num_seqs}"
            )
        if self.enable_prefix_caching and self.block_size >= self.max_model_len:
            raise ValueError(
                f"prefix caching needs KV blocks shorter than max_model_len={self.max_model_len}; "
                f"block_size={self.block_size} holds a whole sequence (try block_size=32)"
            )

    def _check_id(self, req_id: str) -> None:
        if req_id in self._running or req_id in self._waiting or req_id in self._loading:
            raise ValueError(f"request id {req_id!r} is in use; ids must be unique among unfinished requests")
