"""A step on the device side: update rows -> build input -> forward -> output.

The scheduler has no phases; compiled programs do. A row that starts at position 0 and takes its whole prompt is a
prefill, one new token behind computed ones is a decode, everything else is a chunk. Decodes of which one may draft are
a verify: the target drafts and checks by itself, and returns one token or several. A target that runs mixed steps gets
all rows in one pass, a chunk unless they are of one kind, and its bucket counts the tokens of all rows side by side;
the others get one forward a kind, whose bucket counts the tokens of the longest row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vllm.config import VllmConfig
from vllm.core.contract import (
    LOGITS_FAULT,
    BucketUse,
    CachedRequest,
    ModelRunnerOutput,
    NewRequest,
    PromptImages,
    SchedulerOutput,
    TokenLogprobs,
    Tokens,
)
from vllm.device.model import DeviceLost, DeviceModel
from vllm.device.model_input import Kind, LogprobRows, ModelInput, ModelOutput
from vllm.logger import init_logger
from vllm.runner.input_batch import InputBatch, Row
from vllm.sample import host
from vllm.sample.arrays import NO_LOGPROBS, NO_TOKEN
from vllm.sample.logprobs import logprob_rows
from vllm.settings.buckets import SHORTEST_BUCKET, first_fit, generate_buckets

logger = init_logger(__name__)

_BAD_LOGITS = (
    f"{LOGITS_FAULT} for the next token. A weight of the checkpoint is damaged, or the model's dtype overflows."
)
_BAD_PROMPT_LOGITS = _BAD_LOGITS.replace("the next token", "a token of the prompt")


@dataclass(slots=True)
class Work:
    """What one row does in this step: num_new tokens from position num_computed."""

    row: Row
    num_computed: int
    num_new: int
    num_drafts: int

    @property
    def kind(self) -> Kind:
        if self.num_computed == 0 and self.num_new == self.row.num_tokens:
            return Kind.PREFILL
        if self.num_new == 1 and self.num_computed == self.row.num_tokens - 1:
            return Kind.DECODE
        return Kind.CHUNK

    @property
    def samples(self) -> bool:
        return self.num_computed + self.num_new == self.row.num_tokens


class NeuronModelRunner:
    """Runs `SchedulerOutput`s on one `DeviceModel`."""

    def __init__(self, config: VllmConfig, device: DeviceModel) -> None:
        self.config = config
        self.device = device
        block_size = config.cache_config.block_size
        num_rows = config.scheduler_config.max_num_seqs
        if block_size is None or num_rows is None:
            raise ValueError("the config is not resolved: block_size and max_num_seqs are unknown")
        self.block_size = block_size
        self.mixed = device.capabilities.mixed_steps
        self.mixed_buckets = generate_buckets(SHORTEST_BUCKET, config.scheduler_config.max_num_batched_tokens or 1)
        max_len = config.model_config.max_len
        self.blocks_per_row = -(-max_len // block_size)
        self.batch = InputBatch(
            num_rows,
            max_len + config.scheduler_config.num_lookahead_tokens,
            config.model_config.vocab_size,
            contiguous=self.blocks_per_row == 1 and config.cache_config.num_blocks <= num_rows,
            default_top_k=device.capabilities.default_top_k,
        )

    def execute(self, step: SchedulerOutput, result: ModelRunnerOutput | None = None) -> ModelRunnerOutput:
        """Run one step; a request whose input is at fault is reported in `errors` and runs no further.

        result: what the step has brought already, to be filled in.
        """
        started = time.perf_counter()
        result = result or ModelRunnerOutput()
        for works in self._forwards(self._update_rows(step, result)):
            self._run(works, step, result)
        result.device_seconds = time.perf_counter() - started
        return result

    def _update_rows(self, step: SchedulerOutput, result: ModelRunnerOutput) -> list[Work]:
        """The step's rows. One that lacks a token failed in the step before, unknown when this one was scheduled."""
        for req_id in step.finished_req_ids:
            self.batch.remove(req_id)
        works: list[Work] = []
        requests: list[NewRequest | CachedRequest] = [*step.new_requests, *step.cached_requests]
        for request in requests:
            req_id = request.req_id
            try:
                row = self._add_row(request) if isinstance(request, NewRequest) else self.batch.update(request)
            except Exception as error:
                logger.exception("request %s cannot be placed on the device", req_id)
                self.batch.remove(req_id)
                result.errors[req_id] = f"cannot place the request on the device: {error}"
                continue
            num_new = step.num_scheduled_tokens.get(req_id, 0)
            if num_new and request.num_computed_tokens + num_new <= row.num_tokens:
                works.append(Work(row, request.num_computed_tokens, num_new, step.num_draft_tokens.get(req_id, 0)))
        return works

    def _add_row(self, request: NewRequest) -> Row:
        row = self.batch.add(request)
        row.num_cached = -(-request.num_computed_tokens // self.block_size) * self.block_size
        return row

    def _forwards(self, works: list[Work]) -> Iterable[list[Work]]:
        """Rows that run together, by line: all where the target mixes, else all decodes, and prompts by the batch."""
        works.sort(key=lambda work: work.row.line)
        if self.mixed:
            return [works] if works else []
        kinds: dict[Kind, list[Work]] = {}
        for work in works:
            kinds.setdefault(work.kind, []).append(work)
        sizes = {Kind.DECODE: len(works)}
        batch = self.config.scheduler_config.prefill_batch_size
        return [
            group[start : start + sizes.get(kind, batch)]
            for kind, group in sorted(kinds.items(), key=lambda item: item[0] not in sizes)
            for start in range(0, len(group), sizes.get(kind, batch))
        ]

    def _run(self, works: list[Work], step: SchedulerOutput, result: ModelRunnerOutput) -> None:
        """One forward, without the rows that the device finds at fault. If it fails, rows that can run alone do."""
        model_input = self._build_input(works, step)
        if faults := self.device.row_faults(model_input):
            self._drop([works[i] for i in faults], faults.values(), result)
            works = [work for i, work in enumerate(works) if i not in faults]
            if not works:
                return
            model_input = self._build_input(works, step)
        try:
            output = self._forward(model_input)
        except DeviceLost:
            raise
        except Exception as error:
            if len(works) > 1 and self.device.capabilities.deterministic:
                for work in works:
                    self._run([work], step, result)
            else:
                logger.exception("%d requests failed on the device", len(works))
                result.errors.update((work.row.req_id, str(error)) for work in works)
            return
        self._collect(works, model_input, output, result)
        result.bucket_uses.append(self._bucket_use(model_input))

    def _forward(self, model_input: ModelInput) -> ModelOutput:
        """Where rows cannot run alone, a failed forward is run again as it was: it writes the same KV once more."""
        try:
            return self.device.forward(model_input)
        except Exception as error:
            is_input_fault = isinstance(error, (DeviceLost, ValueError, TypeError))
            if is_input_fault or model_input.num_rows == 1 or self.device.capabilities.deterministic:
                raise
            logger.warning("a forward of %d rows failed and is run once more: %s", model_input.num_rows, error)
            return self.device.forward(model_input)

    def _drop(self, works: list[Work], reasons: Iterable[str], result: ModelRunnerOutput) -> None:
        """End rows before they run; their KV is nobody's any more."""
        for work, reason in zip(works, reasons, strict=True):
            req_id = work.row.req_id
            logger.warning("request %s cannot run: %s", req_id, reason)
            result.errors[req_id] = reason
            self.batch.remove(req_id)

    def _build_input(self, works: list[Work], step: SchedulerOutput) -> ModelInput:
        num_rows, width = len(works), max(work.num_new for work in works)
        lines = np.fromiter((work.row.line for work in works), np.int32, num_rows)
        num_tokens = np.fromiter((work.num_new for work in works), np.int32, num_rows)
        computed = np.fromiter((work.num_computed for work in works), np.int32, num_rows)
        samples = np.fromiter((work.samples for work in works), np.bool_, num_rows)

        real = np.arange(width, dtype=np.int32) < num_tokens[:, None]
        positions = np.where(real, computed[:, None] + np.arange(width, dtype=np.int32), 0)
        tokens = self.batch.tokens
        input_ids = np.where(real, tokens[lines[:, None], positions], 0).astype(np.int32)

        num_prompt_logprobs = self.batch.num_prompt_logprobs[lines]
        num_prompt_logprobs[computed >= self.batch.num_prompt_tokens[lines]] = -1
        next_token_ids = np.zeros_like(input_ids)
        if (num_prompt_logprobs >= 0).any():
            following = np.minimum(positions + 1, tokens.shape[1] - 1)
            known = real & (positions + 1 < self.batch.num_tokens[lines][:, None])
            next_token_ids = np.where(known, tokens[lines[:, None], following], 0).astype(np.int32)

        block_table = self._block_table(works)
        blocks = block_table[np.arange(num_rows)[:, None], positions // self.block_size]
        cached = np.fromiter((work.row.num_cached for work in works), np.int32, num_rows)
        written = real & (positions >= cached[:, None])
        slots = np.where(written, blocks * self.block_size + positions % self.block_size, -1).astype(np.int32)
        num_drafts = np.fromiter((work.num_drafts for work in works), np.int32, num_rows)
        kind, bucket = self._kind_and_bucket(works, num_tokens, computed + num_drafts)
        return ModelInput(
            kind=kind,
            bucket=bucket,
            input_ids=input_ids,
            position_ids=positions.astype(np.int32),
            seq_ids=lines,
            num_tokens=num_tokens,
            full_context_lens=computed + num_tokens,
            computed_context_lens=computed,
            block_table=block_table,
            slot_mapping=slots,
            adapter_ids=np.fromiter((work.row.lora_id for work in works), np.int32, num_rows),
            samples=samples,
            sampling_params=self.batch.device_sampling_params[lines],
            sampling=self.batch.sampling_input([work.row for work in works], lines, step.grammar_masks, num_drafts),
            num_prompt_logprobs=num_prompt_logprobs,
            next_token_ids=next_token_ids,
            num_drafts=num_drafts,
            live_seq_ids=self.batch.live_lines(),
            images=_images_of(works),
        )

    def _block_table(self, works: list[Work]) -> np.ndarray:
        table = np.zeros((len(works), self.blocks_per_row), np.int32)
        for i, work in enumerate(works):
            table[i, : len(work.row.block_ids)] = work.row.block_ids[: self.blocks_per_row]
        return table

    def _kind_and_bucket(self, works: list[Work], num_tokens: np.ndarray, computed: np.ndarray) -> tuple[Kind, int]:
        kinds = {work.kind for work in works}
        kind = kinds.pop() if len(kinds) == 1 else Kind.CHUNK
        if any(work.num_drafts for work in works):
            kind = Kind.VERIFY
        programs = self.config.program_config
        if kind in (Kind.PREFILL, Kind.CHUNK):
            if self.mixed:
                return kind, first_fit(int(num_tokens.sum()), self.mixed_buckets)
            return kind, first_fit(int(num_tokens.max()), programs.prompt_buckets)
        return kind, first_fit(int((computed + num_tokens - 1).max()), programs.decode_buckets)

    def _bucket_use(self, model_input: ModelInput) -> BucketUse:
        """What the accelerator's compiled shape would have been for this forward."""
        kind, bucket, rows = model_input.kind, model_input.bucket, model_input.num_rows
        tokens, all_rows = int(model_input.num_tokens.sum()), self.batch.tokens.shape[0]
        if kind in (Kind.PREFILL, Kind.CHUNK) and self.mixed:
            return BucketUse(kind.value, bucket, rows, tokens, all_rows, bucket)
        if kind in (Kind.PREFILL, Kind.CHUNK):
            batch = self.config.scheduler_config.prefill_batch_size
            bucket_rows, width = -(-rows // batch) * batch, bucket
        else:
            tokens += int(model_input.num_drafts.sum())
            bucket_rows, width = all_rows, 1 + int(model_input.num_drafts.max())
        return BucketUse(kind.value, bucket, rows, tokens, bucket_rows, bucket_rows * width)

    def _collect(
        self, works: list[Work], model_input: ModelInput, output: ModelOutput, result: ModelRunnerOutput
    ) -> None:
        if output.logits is not None:
            self._sample_on_host(model_input, output)
        tokens, num_new = self._tokens(output)
        result.num_caught_up += output.num_caught_up
        first_entries = model_input.first_entries.tolist()
        first_logprobs = first_entries if output.first_logprobs is None else output.first_logprobs.tolist()
        prompt_start = 0
        for i, work in enumerate(works):
            req_id = work.row.req_id
            work.row.num_computed = work.num_computed + work.num_new
            if model_input.samples[i]:
                work.row.images = None
            if model_input.num_prompt_logprobs[i] >= 0 and output.prompt_logprobs is not None:
                count = int(model_input.num_tokens[i]) - int(model_input.samples[i])
                start, prompt_start = prompt_start, prompt_start + count
                if (output.prompt_logprobs.count[start:prompt_start] == NO_LOGPROBS).any():
                    result.errors[req_id] = _BAD_PROMPT_LOGITS
                    continue
                result.prompt_logprobs[req_id] = _entries(output.prompt_logprobs, start, prompt_start)
            if not model_input.samples[i]:
                continue
            new = tokens[i, : num_new[i]].tolist()
            if not all(0 <= token_id < self.batch.vocab_size for token_id in new):
                result.errors[req_id] = _token_fault(new)
                continue
            self.batch.append(work.row, new)
            num_drafted = 0 if output.num_drafted is None else int(output.num_drafted[i])
            result.results[req_id] = tokens_of_row = Tokens(new, num_drafted=num_drafted)
            if output.logprobs is not None and model_input.sampling.num_logprobs[first_entries[i]] >= 0:
                first = first_logprobs[i]
                tokens_of_row.logprobs = _entries(output.logprobs, first, first + len(new))

    def _sample_on_host(self, model_input: ModelInput, output: ModelOutput) -> None:
        """Turn logits into tokens and log-probabilities."""
        logits, samples = output.logits, model_input.samples
        if logits is None or logits.shape != (model_input.num_rows, self.batch.vocab_size):
            raise RuntimeError(f"expected logits of {model_input.num_rows} rows over {self.batch.vocab_size} tokens")
        default_top_k = self.device.capabilities.default_top_k
        tokens = host.sample(logits, model_input.sampling, default_top_k, samples)
        output.tokens, output.num_new = tokens[:, None], samples.astype(np.int32)
        output.logprobs = logprob_rows(logits, tokens, model_input.sampling)

    def _tokens(self, output: ModelOutput) -> tuple[np.ndarray, np.ndarray]:
        if output.tokens is None or output.num_new is None:
            raise RuntimeError("the target returned neither tokens nor a host sampler's choice")
        return output.tokens, output.num_new


def _token_fault(token_ids: list[int]) -> str:
    """What is wrong where not all of a row's new tokens are tokens."""
    if NO_TOKEN in token_ids:
        return _BAD_LOGITS
    return f"the device returned tokens that are not in the vocabulary: {token_ids}"


def _images_of(works: list[Work]) -> list[PromptImages | None] | None:
    images = [work.row.images for work in works]
    return images if any(images) else None


def _entries(rows: LogprobRows, start: int, stop: int) -> list[TokenLogprobs]:
    entries = []
    for i in range(start, stop):
        count = int(rows.count[i])
        top = list(zip(rows.top_ids[i, :count].tolist(), rows.top_logprobs[i, :count].tolist(), strict=True))
        entries.append(TokenLogprobs(int(rows.token_id[i]), float(rows.logprob[i]), int(rows.rank[i]), top))
    return entries
