"""All that crosses between the side that decides (`core`, `engine`) and the side that runs (`neuron`).

Plain data and one protocol; no torch, no numpy, no I/O. A step is one round trip:

    SchedulerOutput  --executor.execute-->  ModelRunnerOutput

New requests cross whole, once. After that the device side keeps their tokens itself (it appends what it
sampled), so a known request crosses as a diff: the blocks it gained and how far it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgspec

from vllm.core.work import Work

LOGITS_FAULT = "the model computed NaN or infinite logits"
"""What the error of a request begins with whose logits are not all finite."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What images a loaded model takes, in tiles of one size.

    placeholder_id: the token that stands for an image's embeddings, tokens_per_tile of them for each tile.
    max_tiles: of all images of a prompt. unusable_lengths: prompts with images may not be exactly so many tokens long.
    """

    placeholder_id: int
    tokens_per_tile: int
    max_tiles: int
    unusable_lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptImages:
    """The images of a prompt, as the model's processor prepared them.

    pixels: float32 in this machine's order, of `shape` (tiles, channels, height, width); tiles of all images, in order.
    hashes: one an image, of its content: what the KV of the prompt's placeholders depends on.
    """

    pixels: bytes
    shape: tuple[int, int, int, int]
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model on a device can do. Data, so that generic code never asks which device it is.

    sampling: which of `table.LOGITS_NEEDED` are honoured, beyond what every target honours.
    max_top_k: the largest explicit `top_k` the device honours.
    needs_adapter: each request must name a LoRA adapter. greedy_only: the temperature must be 0.
    default_top_k: how many most likely tokens are sampled from when `top_k` is disabled (0: all of them).
    images: what a prompt may bring beside its text; None: nothing.
    """

    target: str
    sampling: frozenset[str]
    max_top_k: int
    default_top_k: int = 0
    max_logprobs: int = 20
    mixed_steps: bool = False
    structured_outputs: bool = False
    lora: bool = False
    needs_adapter: bool = False
    greedy_only: bool = False
    deterministic: bool = False
    images: ImageLimits | None = None


@dataclass(slots=True)
class NewRequest:
    """A request on its first scheduled step.

    block_ids: KV blocks, in position order; with contiguous KV exactly one, which is the KV line.
    num_computed_tokens: tokens whose KV is already in those blocks (a prefix hit), < len(prompt_token_ids). Where it
        ends inside a block, that block is whole already, and others may read it: its KV is not written again.
    images: what stands for the prompt's placeholders.
    """

    req_id: str
    prompt_token_ids: list[int]
    work: Work
    block_ids: list[int]
    num_computed_tokens: int = 0
    lora_id: int = 0
    images: PromptImages | None = None


@dataclass(slots=True)
class CachedRequest:
    """What changed for a request that the device side already holds."""

    req_id: str
    num_computed_tokens: int
    new_block_ids: list[int] = field(default_factory=list)


class KVOperation(IntEnum):
    """What an order does with a block of the KV cache."""

    SAVE = 0
    """The block goes to the KV store. It is read before the forward of the step that orders it."""
    LOAD = 1
    """The block is filled from the KV store. Nobody reads or writes it until the ticket is done."""


class KVOrder(NamedTuple):
    """A copy of one block. Its ticket is unique, and is done in the result of this step or of any later one."""

    ticket: int
    operation: KVOperation
    block_id: int
    key: bytes
    """Hash of the prefix that ends with the block."""


@dataclass(slots=True)
class SchedulerOutput:
    """One step of work.

    num_scheduled_tokens: req_id -> tokens to compute this step, starting at num_computed_tokens; the
        request order of this dict is the order of rows. A request samples a token in this step exactly
        when its computed tokens reach all its known tokens.
    num_draft_tokens: req_id -> how many tokens the device may draft for it and verify in this step, beyond those in
        num_scheduled_tokens. Only in steps in which every request decodes; one that is not named gets none.
    grammar_masks: req_id -> little-endian bitmask over the vocabulary (bit set: token allowed).
    finished_req_ids: requests whose rows the device side must free before anything else in this step.
    kv_orders: copies between the KV cache and the KV store, saves before loads. A step may consist of orders alone.
    waits_for_kv: loads are under way and there is nothing else to do: the device side may wait a moment for one to end.
    """

    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    new_requests: list[NewRequest] = field(default_factory=list)
    cached_requests: list[CachedRequest] = field(default_factory=list)
    finished_req_ids: list[str] = field(default_factory=list)
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    grammar_masks: dict[str, bytes] = field(default_factory=dict)
    kv_orders: list[KVOrder] = field(default_factory=list)
    waits_for_kv: bool = False

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())

    @property
    def is_empty(self) -> bool:
        """Whether the device side has nothing to do and nothing to learn."""
        return not (self.num_scheduled_tokens or self.finished_req_ids or self.kv_orders or self.waits_for_kv)


class TokenLogprobs(msgspec.Struct, array_like=True, gc=False):
    """Log-probabilities (natural log, of the raw logits) at one position.

    token_id, logprob, rank: the sampled (or the given prompt) token; rank 1 is the most likely.
    top: (token_id, logprob) of the most likely tokens, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]] = []


@dataclass(slots=True)
class BucketUse:
    """How one forward used its compiled shape; the difference is what the accelerator pays for padding.

    kind: "prefill", "chunk", "decode" or "verify".
    tokens, rows: real work. bucket_tokens, bucket_rows: the compiled shape.
    """

    kind: str
    bucket: int
    rows: int
    tokens: int
    bucket_rows: int
    bucket_tokens: int


@dataclass(slots=True)
class Tokens:
    """What a step brought a request that generates."""

    token_ids: list[int]
    """New tokens, at least one; several when drafts were accepted."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry per new token, for requests that asked."""
    num_drafted: int = 0
    """Drafts that were verified, of those granted. All new tokens but the last are accepted drafts."""


@dataclass(slots=True)
class Vector:
    """What the last step of its prompt brought a request that pools; it ends the request."""

    values: bytes
    """float32 [dimensions], in this machine's byte order."""


@dataclass(slots=True)
class ModelRunnerOutput:
    """What one step produced.

    results: req_id -> what it got, only for requests whose known tokens are all computed by the step.
    prompt_logprobs: req_id -> entries for the prompt positions computed in this step (the first position of
        a prompt has none and is skipped).
    num_caught_up: tokens that a draft model had to read beside the newest ones (a prompt, say).
    device_seconds: what the step took on the device side.
    errors: req_id -> message; these requests failed alone and are to be ended with reason "error".
    kv_done: ticket -> whether the copy was made, for orders of this step and of earlier ones.
    kv_forgotten: keys that the KV store no longer holds, or could not save.
    """

    results: dict[str, Tokens | Vector] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    num_caught_up: int = 0
    device_seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    bucket_uses: list[BucketUse] = field(default_factory=list)
    kv_done: dict[int, bool] = field(default_factory=dict)
    kv_forgotten: list[bytes] = field(default_factory=list)


class Executor(Protocol):
    """Reaches the device. The engine holds exactly one."""

    @property
    def capabilities(self) -> Capabilities: ...

    def execute(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step. Raises only when the device itself is unusable; a request's own fault is in `errors`."""
        ...

    def stats(self) -> dict[str, Any]:
        """Plain numbers about start-up and memory: seconds by phase, bytes by kind, artifact hit."""
        ...

    def stored_prefixes(self) -> list[bytes]:
        """Hashes of the prefix blocks that the KV store holds, as at a start."""
        ...

    def reset_prefix_cache(self, reset_store: bool = False) -> None:
        """Forget what belongs to cached prefixes. reset_store: the KV store too."""
        ...

    def check_health(self) -> None: ...

    def shutdown(self) -> None: ...
