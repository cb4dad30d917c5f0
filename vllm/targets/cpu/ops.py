"""The Python face of the native core (csrc/): a model that runs planned programs over packed weights.

The only importer of the extension `vllm._cpu`. Imports neither torch nor transformers. A model keeps its threads to the
process that made it: make it after a fork, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vllm import envs
from vllm.device.model_input import ByteArray, FloatArray, IntArray, LogprobRows, SamplingInput
from vllm.targets.cpu.packing import LAYOUT_VERSION
from vllm.targets.cpu.plan import ProgramSpec
from vllm.targets.cpu.step import Step
from vllm.targets.cpu.threads import choose_cpus

try:
    from vllm import _cpu
    from vllm._cpu import HiddenCache as HiddenCache
    from vllm._cpu import Malformed as Malformed
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "the native core of the cpu target is not built (vllm._cpu is missing); build it with "
        "`pip install -e .` or `python setup.py build_ext --inplace`, which need a C++20 compiler"
    ) from error

KvDtype = Literal["f32", "bf16", "f8", "int8"]


def known_isas() -> list[str]:
    """Instruction sets that this build has kernels for, best first."""
    return list(_cpu.known_isas())


def sampling_columns() -> dict[str, str]:
    """Parameters that the native sampler reads as columns of a `SamplingInput`: dtype by name."""
    return dict(_cpu.sampling_columns())


def supported_isas() -> list[str]:
    """Those that this machine can run, best first; VLLM_CPU_ISA takes any of them."""
    return list(_cpu.supported_isas())


def measure_limits(num_threads: int | None = None, isa: str | None = None) -> dict[str, float]:
    """What this machine does at best, now: read_bytes, bf16_flops and int8_ops a second, by all threads together."""
    return dict(_cpu.measure_limits(choose_cpus(num_threads), isa or envs.VLLM_CPU_ISA))


def memory_needed(index: dict[str, Any], programs: Iterable[ProgramSpec], **options: Any) -> dict[str, int]:
    """What `NativeModel.memory` will say with these programs added; no memory is touched. options: as it takes them."""
    model = _native_model("", index, **options)
    for spec in programs:
        model.add_program(spec)
    return _memory(model)


def _native_model(
    weights_path: str,
    index: dict[str, Any],
    *,
    vocab_size: int,
    max_context: int,
    kv_dtype: KvDtype = "bf16",
    pool: ThreadPool | None = None,
    isa: str | None = None,
    hidden: HiddenCache | None = None,
    **kv_shape: int,
) -> Any:
    """The native model of what `NativeModel` was given; one without a path only reckons."""
    return _cpu.Model(
        weights_path=weights_path,
        weights=index["weights"],
        kv=_kv(kv_dtype, **kv_shape),
        vocab=vocab_size,
        max_context=max_context,
        pool=(pool or ThreadPool()).native,
        isa=isa or envs.VLLM_CPU_ISA,
        hidden=hidden,
    )


def _kv(
    dtype: KvDtype, num_layers: int, num_kv_heads: int, head_dim: int, num_blocks: int, block_size: int
) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "num_layers": num_layers,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "num_blocks": num_blocks,
        "block_size": block_size,
    }


def _memory(model: Any) -> dict[str, int]:
    return {"weights": model.weight_bytes, "kv_cache": model.kv_bytes, "arena": model.arena_bytes}


@dataclass(slots=True)
class NativeOutput:
    """What a step produced.

    tokens: int32 [samples], in the order of the step's sampled positions; None without a SamplingInput.
    logprobs: an entry a sample, empty (count 0) for rows that did not ask; None if none did.
    prompt_logprobs: an entry a position that was only scored; None if there is none.
    logits: float32 [selected, vocab] if wanted; for a program that does not end in `sample`, its last op's output.
    """

    tokens: IntArray | None
    logprobs: LogprobRows | None
    prompt_logprobs: LogprobRows | None
    logits: FloatArray | None


class ThreadPool:
    """Threads that models run on, one at a time. num_threads: None takes what the machine grants."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.native = _cpu.ThreadPool(choose_cpus(num_threads))


class NativeModel:
    """Packed weights mapped from a file, a KV cache, and programs.

    weights_path, index: what `packing.pack` wrote and returned. num_layers, num_kv_heads, head_dim, vocab_size: the
    graph's. max_context: the longest sequence. pool: its threads, which it may share with other models; None: its own.
    isa: None takes VLLM_CPU_ISA. hidden: the hidden cache that `keep` and `recall` ops work on. Raises Malformed (a
    ValueError) for an index that does not fit the file, ValueError for what else does not fit together, RuntimeError or
    OSError for a file that cannot be mapped.
    """

    def __init__(
        self,
        weights_path: Path,
        index: dict[str, Any],
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        vocab_size: int,
        num_blocks: int,
        block_size: int,
        max_context: int,
        kv_dtype: KvDtype = "bf16",
        pool: ThreadPool | None = None,
        isa: str | None = None,
        hidden: HiddenCache | None = None,
    ) -> None:
        if index.get("version") != LAYOUT_VERSION:
            raise Malformed(
                f"{weights_path} was packed in layout version {index.get('version')}, this build reads "
                f"{LAYOUT_VERSION}; compile the model again"
            )
        size = weights_path.stat().st_size
        if size != index.get("num_bytes"):
            raise Malformed(
                f"{weights_path} has {size} bytes, its index says {index.get('num_bytes')!r:.40}; compile the model "
                "again"
            )
        self.vocab_size = vocab_size
        self.native = _native_model(
            str(weights_path),
            index,
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            num_blocks=num_blocks,
            block_size=block_size,
            max_context=max_context,
            kv_dtype=kv_dtype,
            pool=pool,
            isa=isa,
            hidden=hidden,
        )

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self.native.isa)

    @property
    def num_threads(self) -> int:
        return int(self.native.num_threads)

    def memory(self) -> dict[str, int]:
        """Bytes by kind: weights (mapped, shared between processes), kv_cache, arena (buffers and scratch)."""
        return _memory(self.native)

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one KV block, keys and values of all layers, as `read_kv` gives them."""
        return int(self.native.kv_block_bytes)

    def read_kv(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy whole KV blocks to `out`, uint8 [blocks, kv_block_bytes]. Raises ValueError for what does not fit."""
        self.native.read_kv(np.asarray(block_ids, np.int32), out)

    def write_kv(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """The other way round: `data` as `read_kv` gave it, of a model of the same shape."""
        self.native.write_kv(np.asarray(block_ids, np.int32), data)

    def add_program(self, spec: ProgramSpec) -> int:
        """Build a program from `plan.plan`; all memory that running it takes is there when this returns. Its handle.

        The program is checked whole before: each buffer, weight and number of each op. Raises Malformed, with nothing
        changed, for one that cannot be run.
        """
        return int(self.native.add_program(spec))

    def run(
        self,
        program: int,
        step: Step,
        sampling: SamplingInput | None = None,
        *,
        num_prompt_logprobs: IntArray | None = None,
        want_logits: bool = False,
    ) -> NativeOutput:
        """One forward, with sampling if `sampling` (an entry a row of the step) is given. The GIL is released.

        num_prompt_logprobs: int32 [rows], how many most likely tokens to report for positions that are only scored;
        needed if the step has any. Raises ValueError, with nothing done, for ids, slots or blocks out of range.
        """
        num_selected, num_samples = step.num_selected, step.num_samples
        tokens = np.zeros(num_selected, np.int32) if sampling is not None else None
        rows = self._logprob_rows(step, sampling, num_prompt_logprobs)
        logits = None
        if want_logits:
            num_rows = num_selected if self.native.result_rows(program) == "samples" else step.num_tokens
            logits = np.empty((num_rows, self.native.result_width(program)), np.float32)
        self.native.run(
            program,
            self.vocab_size,
            step.token_ids,
            step.positions,
            step.slots,
            step.row_start,
            step.context_len,
            step.block_table,
            step.selected,
            step.selected_row,
            step.given_token,
            sampling,
            num_prompt_logprobs,
            tokens,
            rows and rows.token_id,
            rows and rows.logprob,
            rows and rows.rank,
            rows and rows.count,
            rows and rows.top_ids,
            rows and rows.top_logprobs,
            logits,
        )
        wants_samples = sampling is not None and bool((sampling.num_logprobs >= 0).any())
        return NativeOutput(
            tokens=None if tokens is None else tokens[:num_samples],
            logprobs=rows.part(0, num_samples) if rows is not None and wants_samples else None,
            prompt_logprobs=rows.part(num_samples, num_selected)
            if rows is not None and num_samples < num_selected
            else None,
            logits=logits,
        )

    def _logprob_rows(
        self, step: Step, sampling: SamplingInput | None, num_prompt_logprobs: IntArray | None
    ) -> LogprobRows | None:
        """Room for the log-probabilities that this step is asked for; None if for none."""
        most = -1 if sampling is None else _most_logprobs(sampling, self.vocab_size)
        if step.num_samples < step.num_selected:
            if num_prompt_logprobs is None:
                raise ValueError("the step scores prompt tokens, so num_prompt_logprobs is needed")
            most = max(most, min(int(num_prompt_logprobs.max()), self.vocab_size))
        return None if most < 0 else _empty_rows(step.num_selected, most)


@dataclass(slots=True)
class SpeculativeOutput:
    """What a speculative step produced.

    tokens: int32 [rows, most drafts + 1]; row i's new ones are the first num_new[i]. num_drafted: int32 [rows].
    logprobs: num_drafted[i] + 1 entries a row, without gaps; None if no row asked.
    num_caught_up: tokens that the draft model read beside each row's newest ones.
    """

    tokens: IntArray
    num_new: IntArray
    num_drafted: IntArray
    logprobs: LogprobRows | None
    num_caught_up: int


class NativeSpeculator:
    """Drafts, verifies and accepts in one native call.

    draft, draft_program: a model over the target's blocks, and its program; None: drafts are looked up in the text, by
    its last `shortest` to `longest` tokens. keeps_drafts: the draft's KV of its own accepted drafts is final.
    filled: uint8 [slots], 1 where the draft's KV is that of the token there. The caller clears what it writes itself.
    """

    def __init__(
        self,
        target: NativeModel,
        *,
        draft: NativeModel | None = None,
        draft_program: int = 0,
        shortest: int = 0,
        longest: int = 0,
        keeps_drafts: bool = True,
        num_slots: int,
        max_rows: int,
        max_drafts: int,
    ) -> None:
        self._vocab_size = target.vocab_size
        self.filled = None if draft is None else np.zeros(num_slots, np.uint8)
        self._num_slots = num_slots
        self._native = _cpu.Speculator(
            target=target.native,
            draft=None if draft is None else draft.native,
            program=draft_program,
            shortest=shortest,
            longest=longest,
            keeps_drafts=keeps_drafts,
            max_rows=max_rows,
            max_drafts=max_drafts,
        )

    def run(
        self,
        program: int,
        context_len: IntArray,
        block_table: IntArray,
        num_drafts: IntArray,
        sampling: SamplingInput,
    ) -> SpeculativeOutput:
        """A step of rows that decode, as `ModelInput` describes a VERIFY. program: the target's. The GIL is released.

        Raises ValueError, with nothing done, for what does not fit together.
        """
        most = _most_logprobs(sampling, self._vocab_size)
        rows = None if most < 0 else _empty_rows(len(sampling.position), most)
        tokens = np.zeros((len(context_len), int(num_drafts.max()) + 1), np.int32)
        num_new, num_drafted = np.zeros((2, len(context_len)), np.int32)
        num_caught_up = self._native.run(
            program,
            self._vocab_size,
            context_len,
            block_table,
            num_drafts,
            sampling,
            self.filled,
            self._num_slots,
            tokens,
            num_new,
            num_drafted,
            rows and rows.token_id,
            rows and rows.logprob,
            rows and rows.rank,
            rows and rows.count,
            rows and rows.top_ids,
            rows and rows.top_logprobs,
        )
        return SpeculativeOutput(tokens, num_new, num_drafted, rows, int(num_caught_up))


def propose_ngram(tokens: IntArray, length: int, shortest: int, longest: int, count: int) -> int:
    """`vllm.targets.ngram.propose`, natively: writes drafts behind the first `length` tokens; returns how many."""
    return int(_cpu.propose_ngram(tokens, length, shortest, longest, count))


def _most_logprobs(sampling: SamplingInput, vocab_size: int) -> int:
    """Entries of the row that asks for most; -1 if none asks for any."""
    asking = sampling.num_logprobs >= 0
    if not asking.any():
        return -1
    named = np.diff(sampling.logprob_ids_offsets)
    return int((np.minimum(sampling.num_logprobs, vocab_size) + named)[asking].max())


def _empty_rows(count: int, most: int) -> LogprobRows:
    return LogprobRows(
        token_id=np.zeros(count, np.int32),
        logprob=np.zeros(count, np.float32),
        rank=np.zeros(count, np.int32),
        count=np.zeros(count, np.int32),
        top_ids=np.zeros((count, most), np.int32),
        top_logprobs=np.zeros((count, most), np.float32),
    )
