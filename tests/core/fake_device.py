"""A device side that trusts nobody: it keeps its own books and raises ContractError where a step contradicts them.

Its KV cache holds what it was computed from: token, adapter, and the weights' version. Each step writes its tokens
through the block tables it was given and reads every scheduled row's whole context back, so a block that is shared,
reused or missing is noticed. The next token is a hash of all tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.core.contract import (
    CachedRequest,
    KVOperation,
    KVOrder,
    ModelRunnerOutput,
    NewRequest,
    SchedulerOutput,
    TokenLogprobs,
    Tokens,
    Vector,
)
from vllm.core.work import CorePooling
from vllm.sample.core_sampling import CoreSampling

VOCAB_SIZE = 11
EOS = 0


class ContractError(AssertionError):
    """A step that the device side could not have run."""


def make_config(
    *,
    max_num_seqs: int = 4,
    max_model_len: int = 32,
    block_size: int | None = None,
    num_blocks: int | None = None,
    prefix_caching: bool = False,
    saves_evicted: bool = False,
    saves_computed: bool = False,
    **limits: object,
) -> VllmConfig:
    """A resolved config; contiguous KV unless a block size is given."""
    block_size = block_size or max_model_len
    enough = max_num_seqs * -(-max_model_len // block_size)
    return VllmConfig(
        model_config=ModelConfig(max_model_len=max_model_len),
        cache_config=CacheConfig(
            block_size=block_size,
            num_blocks=enough if num_blocks is None else num_blocks,
            enable_prefix_caching=prefix_caching,
            kv_offloading_size=1.0 if saves_evicted else None,
            kv_offloading_dir="somewhere" if saves_computed else None,
        ),
        scheduler_config=SchedulerConfig(max_num_seqs=max_num_seqs, **limits),  # type: ignore[arg-type]
    )


def next_token(tokens: list[int]) -> int:
    """The only continuation of these tokens."""
    return hashlib.blake2b(bytes(token % 251 for token in tokens), digest_size=4).digest()[0] % VOCAB_SIZE


def vector_of(tokens: list[int]) -> bytes:
    """The vector of a prompt."""
    return hashlib.blake2b(bytes(tokens), digest_size=8).digest()


def solo(prompt: list[int], num_tokens: int, stop: set[int], min_tokens: int = 0) -> list[int]:
    """What a request generates when it is alone, one token at a time."""
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        token = next_token(prompt + tokens)
        tokens.append(token)
        if token in stop and len(tokens) > min_tokens:
            break
    return tokens


@dataclass
class Row:
    block_ids: list[int]
    tokens: list[int]
    prompt_len: int
    computed: int
    num_prompt_logprobs: int | None
    lora_id: int
    version: int
    num_cached: int
    max_len: int
    can_decode: bool = False
    failed: bool = False
    pools: bool = False


@dataclass
class FakeDevice:
    """Drafts what it is granted, a beginning of it rightly.

    fused_drafts: tokens that a decode drafts, asked or not, as programs of a fixed width do.
    fail: req_ids that raise an error at their next step.
    version: of the weights; a row must not see KV older than itself.
    store: what the KV store holds; store_size: blocks beyond which it forgets. Every bad_copy-th copy fails; 0: none.
    slow_loads: a load may take up to so many further steps, each its own number. loading: those under way, by ticket.
    """

    config: VllmConfig
    fused_drafts: int = 0
    fail: set[str] = field(default_factory=set)
    rows: dict[str, Row] = field(default_factory=dict)
    version: int = 0
    kv: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    num_prefills_in_a_row: int = 0
    num_steps: int = 0
    store: dict[bytes, list[tuple[int, int, int]]] = field(default_factory=dict)
    store_size: int = 1000
    bad_copy: int = 0
    num_copies: int = 0
    slow_loads: int = 0
    loading: dict[int, tuple[KVOrder, int]] = field(default_factory=dict)
    tickets: set[int] = field(default_factory=set)

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        self.num_steps += 1
        for req_id in step.finished_req_ids:
            _check(req_id in self.rows, f"{req_id} was finished but is not on the device")
            del self.rows[req_id]
        self._check_steps_kind(step)
        works = [*step.new_requests, *step.cached_requests]
        ids = [work.req_id for work in works]
        _check(len(ids) == len(set(ids)), "a request is in a step twice")
        _check(set(ids) == set(step.num_scheduled_tokens), "new and cached requests are not those scheduled")
        for new in step.new_requests:
            self._add(new)
        for known in step.cached_requests:
            self._extend(known)
        self._check_blocks()
        self._check_limits(step)
        result = ModelRunnerOutput()
        self._copy(step, result)
        for req_id, num_tokens in step.num_scheduled_tokens.items():
            self._run(req_id, num_tokens, step.num_draft_tokens.get(req_id, 0), result)
        return result

    def _copy(self, step: SchedulerOutput, result: ModelRunnerOutput) -> None:
        """Saves, then loads, before anything is written. Copies of blocks that nobody computed raise KeyError."""
        operations = [order.operation for order in step.kv_orders]
        _check(operations == sorted(operations), "a load is ordered before a save")
        for order in step.kv_orders:
            _check(order.ticket not in self.tickets, "a ticket is used twice")
            self.tickets.add(order.ticket)
            if order.operation is KVOperation.SAVE:
                result.kv_done[order.ticket] = self._save(order, result)
            else:
                delay = order.ticket * 7 % (self.slow_loads + 1)
                self.loading[order.ticket] = order, self.num_steps + delay
        self._check_loads()
        for ticket, (order, due) in list(self.loading.items()):
            if self.num_steps >= due:
                del self.loading[ticket]
                result.kv_done[ticket] = self._load(order)
        _check(bool(self.loading or result.kv_done) or not step.waits_for_kv, "a step waits for no load")

    def _check_loads(self) -> None:
        blocks = [order.block_id for order, _ in self.loading.values()]
        held = {block for row in self.rows.values() for block in row.block_ids}
        _check(len(blocks) == len(set(blocks)), "a block is loaded twice at once")
        _check(not held & set(blocks), "a block is loaded that a row holds")

    def _save(self, order: KVOrder, result: ModelRunnerOutput) -> bool:
        if self._fails():
            result.kv_forgotten.append(order.key)
            return False
        size = self.config.cache_config.block_size
        self.store[order.key] = [self.kv[order.block_id * size + i] for i in range(size)]
        if len(self.store) > self.store_size:
            oldest = next(iter(self.store))
            del self.store[oldest]
            result.kv_forgotten.append(oldest)
        return True

    def _load(self, order: KVOrder) -> bool:
        size = self.config.cache_config.block_size
        ok = order.key in self.store and not self._fails()
        entries = self.store[order.key] if ok else [(-1, -1, -1)] * size
        self.kv.update((order.block_id * size + i, entry) for i, entry in enumerate(entries))
        return ok

    def _fails(self) -> bool:
        self.num_copies += 1
        return bool(self.bad_copy) and self.num_copies % self.bad_copy == 0

    def _add(self, new: NewRequest) -> None:
        _check(new.req_id not in self.rows, f"{new.req_id} is new twice")
        _check(0 <= new.num_computed_tokens < len(new.prompt_token_ids), "nothing of the prompt is left to compute")
        params, max_len = new.work, self.config.model_config.max_len
        pools = isinstance(params, CorePooling)
        if isinstance(params, CorePooling):
            _check(params.pooling == "last" or not new.num_computed_tokens, "hidden states of a cached prefix are gone")
            params = CoreSampling(max_tokens=1)
        self.rows[new.req_id] = Row(
            list(new.block_ids),
            list(new.prompt_token_ids),
            len(new.prompt_token_ids),
            new.num_computed_tokens,
            params.prompt_logprobs,
            new.lora_id,
            self.version,
            -(-new.num_computed_tokens // self.config.cache_config.block_size) * self.config.cache_config.block_size,
            min(len(new.prompt_token_ids) + (params.max_tokens or max_len), max_len),
            pools=pools,
        )

    def _extend(self, known: CachedRequest) -> None:
        _check(known.req_id in self.rows, f"{known.req_id} is known to the scheduler only")
        row = self.rows[known.req_id]
        agrees = row.failed or known.num_computed_tokens == row.computed
        _check(agrees, f"{known.req_id}: computed {row.computed}, told {known}")
        row.block_ids += known.new_block_ids

    def _check_blocks(self) -> None:
        cache = self.config.cache_config
        writers: dict[int, str] = {}
        for req_id, row in self.rows.items():
            _check(len(row.block_ids) == len(set(row.block_ids)), f"{req_id} has a block twice")
            _check(all(0 <= block < cache.num_blocks for block in row.block_ids), f"{req_id} has an unknown block")
            for block in row.block_ids[max(row.computed, row.num_cached) // cache.block_size :]:
                _check(block not in writers, f"block {block} is written by {req_id} and {writers.get(block)}")
                writers[block] = req_id
        for req_id, row in self.rows.items():
            for block in row.block_ids:
                _check(writers.get(block, req_id) == req_id, f"{req_id} reads block {block} while it is written")

    def _check_limits(self, step: SchedulerOutput) -> None:
        limits = self.config.scheduler_config
        _check(len(self.rows) <= limits.max_num_seqs, "more rows than max_num_seqs")
        able = [self.rows[req_id].can_decode for req_id in step.num_scheduled_tokens]
        _check(not step.num_draft_tokens or all(able), "drafts in a step that computes prompts")
        _check(step.num_draft_tokens.keys() <= step.num_scheduled_tokens.keys(), "drafts for a row that does not run")
        num_drafts = sum(step.num_draft_tokens.values())
        _check(all(0 < n <= limits.num_lookahead_tokens for n in step.num_draft_tokens.values()), "too many drafts")
        rows = {req_id: self.rows[req_id] for req_id in step.num_scheduled_tokens}
        prompts = {
            req_id: step.num_scheduled_tokens[req_id]
            for req_id, row in rows.items()
            if not (row.can_decode or row.failed)
        }
        _check(len(prompts) <= limits.prefill_batch_size, "too many prompts in a step")
        if limits.max_num_batched_tokens:
            num_tokens = step.total_num_scheduled_tokens + num_drafts
            _check(num_tokens <= limits.max_num_batched_tokens, "too many tokens in a step")
        if limits.max_prefill_tokens:
            _check(sum(prompts.values()) <= limits.max_prefill_tokens, "too many prompt tokens in a step")
        if not limits.max_prefill_tokens and not limits.mixed_steps:
            whole = all(n == self.rows[r].prompt_len - self.rows[r].computed for r, n in prompts.items())
            _check(whole, "a prompt came in pieces")

    def _check_steps_kind(self, step: SchedulerOutput) -> None:
        """Rows able to decode: all or none in a step, and none left out for longer than promised."""
        limits = self.config.scheduler_config
        able = {req_id for req_id, row in self.rows.items() if row.can_decode and not self._is_full(row)}
        decoded = able & set(step.num_scheduled_tokens)
        failed = {req_id for req_id, row in self.rows.items() if row.failed}
        prompts = step.num_scheduled_tokens.keys() - able - failed
        _check(decoded in (set(), able), f"rows {able - decoded} are missing from a decode step")
        if limits.mixed_steps:
            _check(decoded == able, "a mixed step left decodes out")
        else:
            _check(not (decoded and prompts), "prompts and decodes are in one step")
        self.num_prefills_in_a_row = self.num_prefills_in_a_row + 1 if able and not decoded else 0
        _check(self.num_prefills_in_a_row <= limits.max_consecutive_prefills, "running sequences starve")

    def _run(self, req_id: str, num_tokens: int, num_drafts: int, result: ModelRunnerOutput) -> None:
        row = self.rows[req_id]
        if req_id in self.fail or row.failed:
            result.errors[req_id] = "told to fail"
            row.can_decode, row.failed = False, True
            return
        start, stop = row.computed, row.computed + num_tokens
        _check(stop <= len(row.tokens), f"{req_id}: {num_tokens} tokens are not known")
        for position in range(max(start, row.num_cached), stop):
            self._write_kv(row, position, row.tokens[position])
        context = [self.kv[self._slot(row, position)] for position in range(stop)]
        _check([entry[0] for entry in context] == row.tokens[:stop], f"{req_id}: its KV cache holds other tokens")
        _check(all(entry[1] == row.lora_id for entry in context), f"{req_id}: its KV is another adapter's")
        _check(all(entry[2] >= row.version for entry in context), f"{req_id}: its KV is older than the weights")
        if row.num_prompt_logprobs is not None and start < row.prompt_len:
            scored = row.tokens[start + 1 : min(stop + 1, row.prompt_len)]
            result.prompt_logprobs[req_id] = [TokenLogprobs(token, -1.0, 1) for token in scored]
        row.computed = stop
        if stop >= len(row.tokens) and row.pools:
            result.results[req_id] = Vector(vector_of(row.tokens))
        elif stop >= len(row.tokens):
            self._sample(req_id, row, num_drafts, result)

    def _sample(self, req_id: str, row: Row, num_drafts: int, result: ModelRunnerOutput) -> None:
        sampled = []
        drafts = self._propose(row.tokens, num_drafts)
        for position, draft in enumerate(drafts, len(row.tokens)):
            self._write_kv(row, position, draft)
        for draft in [*drafts, None]:
            sampled.append(next_token(row.tokens + sampled))
            if sampled[-1] != draft:
                break
        if row.can_decode:
            sampled += self._make_more(row, row.tokens + sampled, self.fused_drafts - len(drafts))
        row.tokens += sampled
        row.computed = len(row.tokens) - 1
        row.can_decode = True
        logprobs = [TokenLogprobs(token, -1.0, 1) for token in sampled]
        result.results[req_id] = Tokens(sampled, logprobs, len(drafts))

    def _make_more(self, row: Row, tokens: list[int], count: int) -> list[int]:
        """Fused speculation: what a program of a fixed width drafts beyond what was granted, as far as sequences go."""
        start = len(tokens)
        for _ in range(min(count, self.config.model_config.max_len - start)):
            self._write_kv(row, len(tokens) - 1, tokens[-1])
            tokens = [*tokens, next_token(tokens)]
        return tokens[start:]

    def _is_full(self, row: Row) -> bool:
        """Whether a row is about to be ended for its length. With contiguous KV it is in every decode until then."""
        return len(row.tokens) >= row.max_len and self.config.cache_config.block_size < self.config.model_config.max_len

    def _propose(self, tokens: list[int], num_drafts: int) -> list[int]:
        """Drafts of which a beginning that depends on the tokens is right; sometimes fewer than may be."""
        drafts: list[int] = []
        for i in range(num_drafts - (len(tokens) % 7 == 0)):
            token = next_token(tokens + drafts)
            wrong = (len(tokens) + i) % 3 == 2
            drafts.append((token + wrong) % VOCAB_SIZE)
        return drafts

    def _write_kv(self, row: Row, position: int, token: int) -> None:
        self.kv[self._slot(row, position)] = (token, row.lora_id, self.version)

    def _slot(self, row: Row, position: int) -> int:
        block_size = self.config.cache_config.block_size
        block = position // block_size
        _check(block < len(row.block_ids), f"position {position} lies beyond blocks {row.block_ids}")
        return row.block_ids[block] * block_size + position % block_size


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)
