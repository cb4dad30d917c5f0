"""The Python face of the native core (csrc/): a model that runs planned programs over packed weights.

The only importer of the extension `vllm._cpu`. Imports neither torch nor transformers. A model keeps its threads to the
process that made it: make it after a fork, not before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vllm import envs
from vllm.neuron.cpu.packing import LAYOUT_VERSION
from vllm.neuron.cpu.plan import ProgramSpec
from vllm.neuron.cpu.step import Step
from vllm.neuron.cpu.threads import choose_cpus
from vllm.neuron.model_input import FloatArray, IntArray, LogprobRows, SamplingInput

try:
    from vllm import _cpu
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "the native core of the cpu target is not built (vllm._cpu is missing); build it with "
        "`pip install -e .` or `python setup.py build_ext --inplace`, which need a C++20 compiler"
    ) from error

KvDtype = Literal["f32", "bf16", "f8", "int8"]


def known_isas() -> list[str]:
    """Instruction sets that this build has kernels for, best first."""
    return list(_cpu.known_isas())


def supported_isas() -> list[str]:
    """Those that this machine can run, best first; VLLM_CPU_ISA takes any of them."""
    return list(_cpu.supported_isas())


def measure_limits(num_threads: int | None = None, isa: str | None = None) -> dict[str, float]:
    """What this machine does at best, now: read_bytes, bf16_flops and int8_ops a second, by all threads together."""
    return dict(_cpu.measure_limits(choose_cpus(num_threads), isa or envs.VLLM_CPU_ISA))


def memory_needed(
    index: dict[str, Any],
    programs: Iterable[ProgramSpec],
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    vocab_size: int,
    num_blocks: int,
    block_size: int,
    max_context: int,
    kv_dtype: KvDtype = "bf16",
) -> dict[str, int]:
    """What `NativeModel.memory` will say with these programs added; nothing is read, mapped or allocated."""
    cache = _kv(kv_dtype, num_layers, num_kv_heads, head_dim, num_blocks, block_size)
    model = _cpu.Model(
        weights_path="",
        weights=index["weights"],
        kv=cache,
        vocab=vocab_size,
        max_context=max_context,
        cpus=choose_cpus(),
        isa=envs.VLLM_CPU_ISA,
    )
    for spec in programs:
        model.add_program(spec)
    return _memory(model)


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


class NativeModel:
    """Packed weights mapped from a file, a KV cache, and programs.

    weights_path, index: what `packing.pack` wrote and returned. num_layers, num_kv_heads, head_dim, vocab_size: the
    graph's. max_context: the longest sequence. num_threads: None takes what the machine grants. isa: None takes
    VLLM_CPU_ISA. Raises ValueError for what does not fit together, RuntimeError or OSError for a file that cannot be
    mapped.
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
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        if index.get("version") != LAYOUT_VERSION:
            raise ValueError(
                f"{weights_path} was packed in layout version {index.get('version')}, this build reads "
                f"{LAYOUT_VERSION}; compile the model again"
            )
        size = weights_path.stat().st_size
        if size != index["num_bytes"]:
            raise ValueError(
                f"{weights_path} has {size} bytes, its index says {index['num_bytes']}; compile the model again"
            )
        self.vocab_size = vocab_size
        self._model = _cpu.Model(
            weights_path=str(weights_path),
            weights=index["weights"],
            kv=_kv(kv_dtype, num_layers, num_kv_heads, head_dim, num_blocks, block_size),
            vocab=vocab_size,
            max_context=max_context,
            cpus=choose_cpus(num_threads),
            isa=isa or envs.VLLM_CPU_ISA,
        )

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._model.isa)

    @property
    def num_threads(self) -> int:
        return int(self._model.num_threads)

    def memory(self) -> dict[str, int]:
        """Bytes by kind: weights (mapped, shared between processes), kv_cache, arena (buffers and scratch)."""
        return _memory(self._model)

    def add_program(self, spec: ProgramSpec) -> int:
        """Build a program from `plan.plan`; all memory that running it takes is there when this returns. Its handle."""
        return int(self._model.add_program(spec))

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
            num_rows = num_selected if self._model.result_rows(program) == "samples" else step.num_tokens
            logits = np.empty((num_rows, self._model.result_width(program)), np.float32)
        self._model.run(
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
            logprobs=_part(rows, 0, num_samples) if rows is not None and wants_samples else None,
            prompt_logprobs=_part(rows, num_samples, num_selected)
            if rows is not None and num_samples < num_selected
            else None,
            logits=logits,
        )

    def _logprob_rows(
        self, step: Step, sampling: SamplingInput | None, num_prompt_logprobs: IntArray | None
    ) -> LogprobRows | None:
        """Room for the log-probabilities that this step is asked for; None if for none."""
        most = -1
        if sampling is not None and (asking := sampling.num_logprobs >= 0).any():
            named = np.diff(sampling.logprob_ids_offsets)
            most = int((np.minimum(sampling.num_logprobs, self.vocab_size) + named)[asking].max())
        if step.num_samples < step.num_selected:
            if num_prompt_logprobs is None:
                raise ValueError("the step scores prompt tokens, so num_prompt_logprobs is needed")
            most = max(most, min(int(num_prompt_logprobs.max()), self.vocab_size))
        if most < 0:
            return None
        count = step.num_selected
        return LogprobRows(
            token_id=np.zeros(count, np.int32),
            logprob=np.zeros(count, np.float32),
            rank=np.zeros(count, np.int32),
            count=np.zeros(count, np.int32),
            top_ids=np.zeros((count, most), np.int32),
            top_logprobs=np.zeros((count, most), np.float32),
        )


def _part(rows: LogprobRows, start: int, stop: int) -> LogprobRows:
    def cut(values: NDArray[Any]) -> NDArray[Any]:
        return values[start:stop]

    return LogprobRows(
        cut(rows.token_id),
        cut(rows.logprob),
        cut(rows.rank),
        cut(rows.count),
        cut(rows.top_ids),
        cut(rows.top_logprobs),
    )
