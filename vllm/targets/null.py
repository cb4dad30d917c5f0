"""Target `null`: no arithmetic, but faithful to the KV contract.

Its KV cache holds, for each position, a hash of the tokens up to it, as real keys and values depend on all before
them. A forward reads the hash before its first token through the block table, writes those of its tokens through the
slots it is told, then reads the row's whole context back and hashes that; it decides the logits. So the text is a
function of the tokens alone, and any mistake in slots, order, chunks, block tables, prefixes or reuse changes it.

With speculation it drafts as other targets do: by `ngram`, or by a "draft model" that proposes the right token three
times out of four, as a hash of the context decides. Verification is a forward of its own over the drafts' slots.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vllm import envs
from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.core.profile import TargetProfile
from vllm.device.model import DeviceModel, Progress
from vllm.device.model_input import ByteArray, Kind, LogprobRows, ModelInput, ModelOutput
from vllm.sample import host, logprobs
from vllm.sample.table import LOGITS_NEEDED
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.target import PlannedFile, Target, rules_of_own_programs
from vllm.targets.ngram import propose

_MULTIPLIER = 0x9E3779B97F4A7C15
_FAVOURITE = 9.0
_NOISE = 8.0


class NullTarget(Target):
    profile = TargetProfile(
        name="null",
        dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=("auto", "bfloat16", "float32", "fp8", "int8"),
        block_kv_by_default=True,
        speculation_methods=("ngram", "draft_model", "eagle", "eagle3"),
        key_rules=rules_of_own_programs("null"),
    )
    device_model = "vllm.targets.null:NullDeviceModel"

    def files(
        self, neuron_config: NeuronConfig, shards: Mapping[str, int], num_programs: int, portable: bool
    ) -> list[PlannedFile]:
        return [PlannedFile("null.json")]


TARGET = NullTarget()


class NullDeviceModel(DeviceModel):
    """kv: uint64 [num_blocks * block_size], by slot: the sum of (token + 2) * M^(position + 1) up to its position."""

    def __init__(self, config: VllmConfig) -> None:
        cache, scheduler = config.cache_config, config.scheduler_config
        self.block_size = cache.block_size or config.model_config.max_len
        self.vocab_size = config.model_config.vocab_size
        self.kv = np.zeros(cache.num_blocks * self.block_size, np.uint64)
        self.speculation = config.speculative_config
        self.kv_block_bytes = self.block_size * self.kv.itemsize
        self.step_seconds = envs.VLLM_NULL_STEP_MS / 1000
        self.steps_left = envs.VLLM_NULL_HANG_AFTER or math.inf
        self.capabilities = Capabilities(
            target=TARGET.profile.name,
            sampling=LOGITS_NEEDED,
            max_top_k=self.vocab_size,
            default_top_k=min(config.program_config.num_candidates, self.vocab_size),
            max_logprobs=self.vocab_size,
            mixed_steps=scheduler.mixed_steps,
            structured_outputs=True,
            deterministic=True,
        )

    @classmethod
    def artifact_key(cls, config: VllmConfig) -> dict[str, Any]:
        return {"compiler": "null-1"}

    @classmethod
    def compile(cls, config: VllmConfig, directory: Path, progress: Progress) -> None:
        progress("nothing to compile", 1.0)
        (directory / "null.json").write_text(json.dumps({"vocab_size": config.model_config.vocab_size}))

    @classmethod
    def load(cls, config: VllmConfig, directory: Path) -> NullDeviceModel:
        return cls(config)

    def forward(self, model_input: ModelInput) -> ModelOutput:
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.steps_left -= 1
        if self.steps_left < 0:
            threading.Event().wait()
        if model_input.kind is Kind.VERIFY:
            return self._verify(model_input)
        self._write_kv(model_input)
        hashes = np.fromiter(
            (self._hash(model_input, i, int(model_input.full_context_lens[i])) for i in range(model_input.num_rows)),
            np.uint64,
            model_input.num_rows,
        )
        tokens, logprobs = self._sample(model_input, hashes)
        return ModelOutput(
            tokens=tokens[:, None],
            num_new=model_input.samples.astype(np.int32),
            logprobs=logprobs,
            prompt_logprobs=self._prompt_logprobs(model_input),
        )

    def read_kv(self, block_ids: Sequence[int], out: ByteArray) -> None:
        out[:] = self._kv_blocks()[list(block_ids)]

    def write_kv(self, block_ids: Sequence[int], data: ByteArray) -> None:
        self._kv_blocks()[list(block_ids)] = data

    def _kv_blocks(self) -> ByteArray:
        return self.kv.view(np.uint8).reshape(-1, self.kv_block_bytes)

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "kv_cache": self.kv.nbytes, "arena": 0}

    def shutdown(self) -> None:
        """Nothing to release."""

    def _verify(self, model_input: ModelInput) -> ModelOutput:
        """Draft, then sample what follows each row's last token and each draft; keep what agrees, and one more."""
        drafts = self._drafts(model_input)
        sampling, first_entries = model_input.sampling, model_input.first_entries
        hashes = np.zeros(len(sampling.position), np.uint64)
        for row, (first, row_drafts) in enumerate(zip(first_entries.tolist(), drafts, strict=True)):
            for ahead in range(len(row_drafts) + 1):
                self._write_draft(model_input, row, ahead, row_drafts)
                context = int(model_input.full_context_lens[row]) + ahead
                hashes[first + ahead] = self._hash(model_input, row, context)
        sampled, logprobs = self._sample(model_input, hashes)
        tokens = np.zeros((model_input.num_rows, int(model_input.num_drafts.max()) + 1), np.int32)
        num_new = np.ones(model_input.num_rows, np.int32)
        output = ModelOutput(
            tokens=tokens,
            num_new=num_new,
            logprobs=logprobs,
            num_drafted=np.asarray([len(row_drafts) for row_drafts in drafts], np.int32),
        )
        for row, (first, row_drafts) in enumerate(zip(first_entries.tolist(), drafts, strict=True)):
            new = sampled[first : first + len(row_drafts) + 1]
            agreeing = np.flatnonzero(new[:-1] != row_drafts)
            count = int(agreeing[0]) + 1 if agreeing.size else len(new)
            tokens[row, :count], num_new[row] = new[:count], count
        return output

    def _drafts(self, model_input: ModelInput) -> list[list[int]]:
        """Drafts of every row; they also go into its history, behind the known tokens, as the sampler wants them."""
        sampling, drafts = model_input.sampling, []
        for row, first in enumerate(model_input.first_entries.tolist()):
            known = int(sampling.position[first])
            history = sampling.history[sampling.history_line[first]]
            count = int(model_input.num_drafts[row])
            if self.speculation is not None and self.speculation.method == "ngram":
                shortest, longest = self.speculation.prompt_lookup_min, self.speculation.prompt_lookup_max
                proposed = propose(history[:known], shortest, longest, count)
            else:
                proposed = self._guess(model_input, row, first, count)
            history[known : known + len(proposed)] = proposed
            drafts.append(proposed)
        return drafts

    def _guess(self, model_input: ModelInput, row: int, first: int, count: int) -> list[int]:
        """The tokens that will be sampled, but for one in four."""
        sampling, drafts = model_input.sampling, list[int]()
        history = sampling.history[sampling.history_line[first]]
        known = int(sampling.position[first])
        wanted = np.zeros(len(sampling.position), np.bool_)
        hashes = np.zeros(len(sampling.position), np.uint64)
        for ahead in range(count):
            self._write_draft(model_input, row, ahead, drafts)
            context = self._hash(model_input, row, int(model_input.full_context_lens[row]) + ahead)
            wanted[:] = False
            wanted[first + ahead], hashes[first + ahead] = True, context
            right = host.sample(self._logits(hashes), sampling, self.capabilities.default_top_k, wanted)[first + ahead]
            drafts.append((int(right) + (context >> 20) % 4 // 3) % self.vocab_size)
            history[known + ahead] = drafts[-1]
        return drafts

    def _write_draft(self, model_input: ModelInput, row: int, ahead: int, drafts: list[int]) -> None:
        """KV of the row's last known token (ahead 0) or of a draft, behind what is there."""
        position = int(model_input.full_context_lens[row]) - 1 + ahead
        token = drafts[ahead - 1] if ahead else int(model_input.input_ids[row, 0])
        block = int(model_input.block_table[row, position // self.block_size])
        with np.errstate(over="ignore"):
            value = np.uint64(token + 2) * _powers(position + 1)[position]
            if position:
                value += self._read(model_input, row, position)[-1]
        self.kv[block * self.block_size + position % self.block_size] = value

    def _write_kv(self, model_input: ModelInput) -> None:
        greatest = int(model_input.slot_mapping.max(initial=-1))
        if greatest >= self.kv.size:
            raise ValueError(f"slot {greatest} lies outside the KV cache of {self.kv.size} slots")
        for row in range(model_input.num_rows):
            start, stop = int(model_input.computed_context_lens[row]), int(model_input.full_context_lens[row])
            slots = model_input.slot_mapping[row, : stop - start]
            tokens = model_input.input_ids[row, : stop - start].astype(np.uint64) + np.uint64(2)
            with np.errstate(over="ignore"):
                values = np.cumsum(tokens * _powers(stop)[start:], dtype=np.uint64)
                if start:
                    values += self._read(model_input, row, start)[-1]
            self.kv[slots[slots >= 0]] = values[slots >= 0]

    def _read(self, model_input: ModelInput, row: int, length: int) -> np.ndarray:
        """What the KV cache has of the first `length` positions of a row."""
        num_blocks = -(-length // self.block_size)
        blocks = model_input.block_table[row, :num_blocks].astype(np.int64)
        slots = (blocks[:, None] * self.block_size + np.arange(self.block_size)).ravel()[:length]
        return np.asarray(self.kv[slots])

    def _hash(self, model_input: ModelInput, row: int, length: int) -> int:
        """Hash of the first `length` positions of a row, as the KV cache has them."""
        with np.errstate(over="ignore"):
            values = self._read(model_input, row, length) * _powers(length)
            return int(host.splitmix64(np.sum(values, dtype=np.uint64)))

    def _logits(self, hashes: np.ndarray) -> np.ndarray:
        """float32 [N, vocab]: noise in [0, 8), and 9 for the token that the hash favours."""
        with np.errstate(over="ignore"):
            draws = host.splitmix64(hashes[:, None] + np.arange(self.vocab_size, dtype=np.uint64))
        logits = (draws >> np.uint64(40)).astype(np.float32) * np.float32(_NOISE * 2.0**-24)
        logits[np.arange(len(hashes)), self._favourites(hashes)] = _FAVOURITE
        return logits

    def _favourites(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes % np.uint64(self.vocab_size)).astype(np.int64)

    def _sample(self, model_input: ModelInput, hashes: np.ndarray) -> tuple[np.ndarray, LogprobRows | None]:
        if host.is_plain_greedy(model_input.sampling):
            return self._favourites(hashes).astype(np.int32), None
        logits = self._logits(hashes)
        tokens = host.sample(logits, model_input.sampling, self.capabilities.default_top_k)
        return tokens, logprobs.logprob_rows(logits, tokens, model_input.sampling)

    def _prompt_logprobs(self, model_input: ModelInput) -> LogprobRows | None:
        wanted = np.flatnonzero(model_input.num_prompt_logprobs >= 0)
        if not wanted.size:
            return None
        hashes, following, counts = [], [], []
        for row in wanted:
            computed = int(model_input.computed_context_lens[row])
            for column in range(int(model_input.num_tokens[row]) - int(model_input.samples[row])):
                hashes.append(self._hash(model_input, int(row), computed + column + 1))
                following.append(int(model_input.next_token_ids[row, column]))
                counts.append(int(model_input.num_prompt_logprobs[row]))
        logits = self._logits(np.asarray(hashes, np.uint64))
        return logprobs.token_logprobs(logits, np.asarray(following, np.int32), np.asarray(counts, np.int32))


@lru_cache(maxsize=4096)
def _powers(length: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.cumprod(np.full(length, _MULTIPLIER, np.uint64), dtype=np.uint64)
