"""What the core tells the front: progress of single requests, and the state of the queue and the KV cache.

These cross a process boundary as msgpack (msgspec).
All times are seconds of the monotonic clock, which the processes of one machine share; 0.0 means "not yet".
"""

from __future__ import annotations

import msgspec

from vllm.core.contract import LOGITS_FAULT, TokenLogprobs

GRAMMAR_FAULT = "structured_outputs: "
"""What the error of a request begins with whose grammar could not be followed: its own fault, not the engine's."""


class RequestTimes(msgspec.Struct, array_like=True, gc=False):
    """When a request arrived at the front, entered the queue, first ran, and produced its first and latest token."""

    arrival: float = 0.0
    queued: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


class SpecDecodeMetrics(msgspec.Struct, array_like=True, gc=False):
    """What speculation did for one output: steps that had drafts, tokens drafted, tokens accepted."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def acceptance_length(self) -> float:
        """Tokens a drafting step brought, the target's own among them."""
        return 1.0 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


class EngineCoreOutput(msgspec.Struct, array_like=True, gc=False):
    """What one step, or its end, brought one request.

    new_token_ids: already cut after the token that stopped the request; the stopping token itself is included.
    logprobs: one entry a new token, for requests that asked.
    prompt_logprobs: entries of the prompt positions computed in this step; may come without new tokens.
    finish_reason: "stop", "length", "abort", "error", or None while the request runs.
    stop_reason: the id of the `stop_token_ids` that ended it; None for EOS and every other reason.
    num_cached_tokens: prompt tokens whose KV was found in the prefix cache.
    num_external_tokens: how many of them came from the KV store.
    error: what went wrong, with finish_reason "error".
    vector: float32 [dimensions], in this machine's byte order: the end of a request that pools.
    front: the index of the front end that asked.
    times: with the first token and with the end. spec_decode_metrics: so far, if there were drafts.
    """

    req_id: str
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    times: RequestTimes | None = None
    spec_decode_metrics: SpecDecodeMetrics | None = None
    num_external_tokens: int = 0
    vector: bytes | None = None
    front: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def has_bad_logits(self) -> bool:
        """Whether it ended since its logits were not all finite."""
        return self.error is not None and self.error.startswith(LOGITS_FAULT)


class SchedulerStats(msgspec.Struct, array_like=True, gc=False):
    """A snapshot. The figures of the prefix cache (tokens; the external ones are the KV store's) and of speculation are
    counted since the start.

    kv_cache_usage: share of the KV blocks held by running requests, 0 to 1. running_lora_ids, waiting_lora_ids: the
    adapters of running and of waiting requests, by number.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    spec_num_drafts: int = 0
    spec_num_draft_tokens: int = 0
    spec_num_accepted_tokens: int = 0
    spec_num_accepted_by_position: tuple[int, ...] = ()
    external_prefix_cache_queries: int = 0
    external_prefix_cache_hits: int = 0
    running_lora_ids: tuple[int, ...] = ()
    waiting_lora_ids: tuple[int, ...] = ()
