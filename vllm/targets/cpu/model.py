"""Target `cpu`: compile a checkpoint into packed weights and planned programs, map them, run them natively.

An artifact holds

    weights.bin             every weight in kernel order, mapped at load and shared by all processes that load it
    index.json              where each weight lies, and what the KV cache of the model looks like
    programs/<name>.json    one a compiled shape: prefill-<bucket>, or with chunked prefill `mixed`, for decodes and
                            pieces of prompts side by side; and decode (its shape does not depend on the bucket,
                            since attention reads a row's own context and no more)
    draft/                  the same of a draft model, if one drafts: one program, `draft`

Programs take packed rows, so padding costs nothing here; a compiled shape only says how much memory a step may need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.kind import is_gguf
from vllm.checkpoint.tied import with_output_matrix
from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.device.model import DeviceModel, Progress
from vllm.device.model_input import ByteArray, Kind, ModelInput, ModelOutput
from vllm.logger import init_logger
from vllm.sample.table import LOGITS_NEEDED
from vllm.targets.cpu.coverage import Source, check_all_read, faults_of, growth
from vllm.targets.cpu.draft_pair import build_pair
from vllm.targets.cpu.drafts import Drafter, draft_program_shape
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.memory import COMPILE_BYTES, check_memory
from vllm.targets.cpu.models import build_graph, resolve_architecture
from vllm.targets.cpu.models.eagle import kept_width
from vllm.targets.cpu.ops import HiddenCache, KvDtype, NativeModel, ThreadPool, memory_needed
from vllm.targets.cpu.packing import LAYOUT_VERSION, Scheme, lay_out, pack
from vllm.targets.cpu.part_files import Index, Specs, damage_of, read_part
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.profile import KV_DTYPES, QUANTISED, SCHEMES, TARGET
from vllm.targets.cpu.step import build_step

logger = init_logger(__name__)

COMPILER_VERSION = 4
SCORED_AT_ONCE = 64
"""Positions whose logits are in memory at once."""


class CpuDeviceModel(DeviceModel):
    """A loaded artifact, its KV cache, and its programs by name."""

    def __init__(
        self,
        config: VllmConfig,
        native: NativeModel,
        programs: dict[str, int],
        draft: NativeModel | None = None,
        hidden: HiddenCache | None = None,
    ) -> None:
        self.native = native
        self.hidden = hidden
        self.programs = programs
        self.draft = draft
        self.drafter = Drafter(config, native, draft) if config.speculative_config is not None else None
        self.kv_block_bytes = native.kv_block_bytes
        self.block_size = config.cache_config.block_size or config.model_config.max_len
        self.capabilities = Capabilities(
            target=TARGET.profile.name,
            sampling=LOGITS_NEEDED,
            max_top_k=native.vocab_size,
            default_top_k=default_top_k(config),
            max_logprobs=native.vocab_size,
            mixed_steps=config.scheduler_config.mixed_steps,
            structured_outputs=True,
            deterministic=True,
        )

    @classmethod
    def artifact_key(cls, config: VllmConfig) -> dict[str, Any]:
        return {
            **({"draft_scheme": draft_scheme(config)} if _drafts(config) else {}),
            "compiler": f"cpu-{COMPILER_VERSION}",
            "layout": LAYOUT_VERSION,
            "scheme": weight_scheme(config),
            "kv_dtype": kv_dtype(config),
            "mixed_tokens": mixed_tokens(config),
        }

    @classmethod
    def compile(cls, config: VllmConfig, directory: Path, progress: Progress) -> None:
        check_memory(config, {"compiling": COMPILE_BYTES})
        parts = _parts(config)
        check_all_read((part.graph, part.weights) for part in parts)
        for part in parts:
            part.write(config, directory, progress)

    @classmethod
    def check_fits(cls, config: VllmConfig) -> None:
        parts = {part.name: part.lay_out(config) for part in _parts(config)}
        hidden = _hidden_cache(config, parts[""][0]["hidden_width"])
        check_memory(config, _memory_needed(config, parts, ThreadPool(), hidden))

    @classmethod
    def artifact_bytes(cls, config: VllmConfig) -> int:
        return sum(part.num_bytes(config) for part in _parts(config))

    @classmethod
    def load(cls, config: VllmConfig, directory: Path) -> CpuDeviceModel:
        shapes = {"": program_shapes(config)} | (
            {DRAFT: {DRAFT: draft_program_shape(config)}} if _drafts(config) else {}
        )
        with damage_of(directory):
            parts = {name: read_part(directory / name, programs) for name, programs in shapes.items()}
            pool, hidden = ThreadPool(), _hidden_cache(config, parts[""][0]["hidden_width"])
            needed = _memory_needed(config, parts, pool, hidden)
        check_memory(config, needed)
        with damage_of(directory):
            native, programs = _load_part(config, directory, parts[""], pool, hidden)
            draft = _load_part(config, directory / DRAFT, parts[DRAFT], pool, hidden)[0] if DRAFT in parts else None
        logger.info("cpu: %s kernels on %d threads", native.isa, native.num_threads)
        return cls(config, native, programs, draft, hidden)

    def forward(self, model_input: ModelInput) -> ModelOutput:
        program = self.programs[self._program(model_input)]
        if model_input.kind is Kind.VERIFY and self.drafter is not None:
            return self.drafter.run(program, model_input)
        step = build_step(model_input, self.block_size)
        result = self.native.run(
            program, step, model_input.sampling, num_prompt_logprobs=model_input.num_prompt_logprobs
        )
        if self.drafter is not None:
            self.drafter.note_written(step.slots)
        rows = np.flatnonzero(model_input.samples)
        tokens = np.zeros((model_input.num_rows, 1), np.int32)
        if result.tokens is not None:
            tokens[rows, 0] = result.tokens
        return ModelOutput(
            tokens=tokens,
            num_new=model_input.samples.astype(np.int32),
            logprobs=result.logprobs,
            first_logprobs=np.cumsum(model_input.samples, dtype=np.int32) - model_input.samples,
            prompt_logprobs=result.prompt_logprobs,
        )

    def read_kv(self, block_ids: Sequence[int], out: ByteArray) -> None:
        self.native.read_kv(block_ids, out)

    def write_kv(self, block_ids: Sequence[int], data: ByteArray) -> None:
        self.native.write_kv(block_ids, data)

    def kv_identity(self) -> dict[str, Any]:
        return {"isa": self.native.isa}

    def memory(self) -> dict[str, int]:
        parts = {"": self.native.memory()} | ({DRAFT: self.draft.memory()} if self.draft is not None else {})
        return _by_part(parts, self.hidden)

    def shutdown(self) -> None:
        """Threads and memory go with the last reference."""

    def _program(self, model_input: ModelInput) -> str:
        if model_input.kind not in (Kind.PREFILL, Kind.CHUNK):
            return "decode"
        return "mixed" if self.capabilities.mixed_steps else f"prefill-{model_input.bucket}"


DRAFT = "draft"


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the models of an artifact. name: "" for the target, or DRAFT; its directory, and its prefix of memory."""

    name: str
    graph: Graph
    weights: Source
    scheme: Scheme
    shapes: Mapping[str, tuple[int, int]]

    def lay_out(self, config: VllmConfig) -> tuple[Index, Specs]:
        """What `write` will write, without reading a weight."""
        with faults_of(self.weights.path):
            index = lay_out(self.graph, self.weights, self.scheme)
        return self._described(index), self._programs(config)

    def num_bytes(self, config: VllmConfig) -> int:
        """What `write` will write."""
        index, specs = self.lay_out(config)
        return int(index["num_bytes"]) + sum(len(json.dumps(each)) for each in (index, *specs.values()))

    def write(self, config: VllmConfig, directory: Path, progress: Progress) -> None:
        directory = directory / self.name
        (directory / "programs").mkdir(parents=True)
        with faults_of(self.weights.path):
            if grown := growth(self.graph, self.weights, lay_out(self.graph, self.weights, self.scheme)):
                logger.info("weights take more memory than room in their files: %s per value", grown)
            index = pack(self.graph, self.weights, self.scheme, directory / "weights.bin", progress)
        (directory / "index.json").write_text(json.dumps(self._described(index)))
        for name, spec in self._programs(config).items():
            (directory / "programs" / f"{name}.json").write_text(json.dumps(spec))

    def _described(self, index: Index) -> Index:
        return {**index, "kv": self.graph.shape, "hidden_width": kept_width(self.graph)}

    def _programs(self, config: VllmConfig) -> Specs:
        return {
            name: plan(self.graph, tokens, samples, default_top_k(config))
            for name, (tokens, samples) in self.shapes.items()
        }


def _drafts(config: VllmConfig) -> bool:
    """Whether a model drafts."""
    return config.speculative_config is not None and config.speculative_config.uses_model


def _parts(config: VllmConfig) -> list[_Part]:
    """The target and, if one drafts, its draft; of their checkpoints nothing but headers is read."""
    model, speculation = config.model_config, config.speculative_config
    checkpoint = open_checkpoint(model.model_path or model.model, load_format=model.load_format)
    with faults_of(checkpoint.path):
        resolve_architecture(model.hf_config)
        graph = build_graph(with_output_matrix(model.hf_config, checkpoint), model.max_len)
    if speculation is None or not speculation.uses_model:
        return [_Part("", graph, checkpoint, weight_scheme(config), program_shapes(config))]
    needs_norm = bool(config.program_config.eagle_draft_input_norm)
    pair = build_pair(graph, checkpoint, speculation, model.max_len, needs_norm)
    return [
        _Part("", pair.target, pair.target_weights, weight_scheme(config), program_shapes(config)),
        _Part(DRAFT, pair.draft, pair.draft_weights, draft_scheme(config), {DRAFT: draft_program_shape(config)}),
    ]


def _memory_needed(
    config: VllmConfig, parts: Mapping[str, tuple[Index, Specs]], pool: ThreadPool, hidden: HiddenCache | None
) -> dict[str, int]:
    """What `CpuDeviceModel.memory` will say."""
    shape = {**cache_shape(config), "pool": pool, "hidden": hidden}
    return _by_part(
        {name: memory_needed(index, specs.values(), **index["kv"], **shape) for name, (index, specs) in parts.items()},
        hidden,
    )


def _by_part(parts: Mapping[str, dict[str, int]], hidden: HiddenCache | None) -> dict[str, int]:
    """One table of bytes by kind."""
    memory = {f"{part}_{kind}" if part else kind: size for part, kinds in parts.items() for kind, size in kinds.items()}
    return memory if hidden is None else {**memory, "hidden_states": hidden.bytes}


def _load_part(
    config: VllmConfig, directory: Path, part: tuple[Index, Specs], pool: ThreadPool, hidden: HiddenCache | None
) -> tuple[NativeModel, dict[str, int]]:
    """A model, and its programs' handles by name."""
    index, specs = part
    native = NativeModel(
        directory / "weights.bin", index, **index["kv"], **cache_shape(config), pool=pool, hidden=hidden
    )
    return native, {name: native.add_program(spec) for name, spec in specs.items()}


def _hidden_cache(config: VllmConfig, width: int) -> HiddenCache | None:
    """Of the target and its draft; None where the target keeps nothing for one."""
    shape = cache_shape(config)
    return HiddenCache(shape["num_blocks"] * shape["block_size"], width) if width else None


def cache_shape(config: VllmConfig) -> dict[str, Any]:
    """The KV cache's size and type, in the words of `NativeModel`."""
    return {
        "num_blocks": config.cache_config.num_blocks,
        "block_size": config.cache_config.block_size or config.model_config.max_len,
        "max_context": config.model_config.max_len,
        "kv_dtype": kv_dtype(config),
    }


def program_shapes(config: VllmConfig) -> dict[str, tuple[int, int]]:
    """Name -> most tokens of a step, and most positions whose logits are in memory at once."""
    rows, prompts = config.program_config.num_rows, config.scheduler_config.prefill_batch_size
    if tokens := mixed_tokens(config):
        shapes = {"mixed": (tokens, max(rows, min(SCORED_AT_ONCE, tokens)))}
    else:
        shapes = {
            f"prefill-{bucket}": (bucket * prompts, max(prompts, min(SCORED_AT_ONCE, bucket)))
            for bucket in config.program_config.prompt_buckets
        }
    tokens = rows * (1 + config.scheduler_config.num_lookahead_tokens)
    shapes["decode"] = (tokens, max(rows, min(SCORED_AT_ONCE, tokens)))
    return shapes


def mixed_tokens(config: VllmConfig) -> int:
    """Most tokens of a mixed step; 0 where steps are not mixed."""
    scheduler = config.scheduler_config
    return int(scheduler.max_num_batched_tokens or 0) if scheduler.mixed_steps else 0


def weight_scheme(config: VllmConfig) -> Scheme:
    """What becomes of the weights."""
    quantization = config.program_config.quantization
    return SCHEMES[config.model_config.dtype] if quantization is None else QUANTISED[quantization]


def draft_scheme(config: VllmConfig) -> Scheme:
    """What becomes of a draft's weights: what its target's become, but floats become 8 bits unless a type is asked for.

    A draft is run several times for one pass of its target, and its rounding changes no token, only how many are
    accepted. A draft in a GGUF file stays as it is.
    """
    scheme, speculation = weight_scheme(config), config.speculative_config
    own = (speculation.model_path or speculation.model) if speculation is not None else ""
    return "int8" if scheme == "native" and not is_gguf(Path(own)) else scheme


def kv_dtype(config: VllmConfig) -> KvDtype:
    """The KV cache's type: what was asked for, else float32 beside float32 weights and bfloat16 beside all others."""
    asked = config.cache_config.kv_cache_dtype
    if asked == "auto":
        return "f32" if config.model_config.dtype == "float32" else "bf16"
    return KV_DTYPES[asked]


def default_top_k(config: VllmConfig) -> int:
    """How many most likely tokens are sampled from when `top_k` is disabled."""
    return min(config.program_config.num_candidates, config.model_config.vocab_size)
