"""Target `cpu`: compile a checkpoint into packed weights and planned programs, map them, run them natively.

An artifact holds

    weights.bin             every weight in kernel order, mapped at load and shared by all processes that load it
    index.json              where each weight lies, and what the KV cache of the model looks like
    programs/<name>.json    one a compiled shape: prefill-<bucket>, or with chunked prefill `mixed`, for decodes and
                            pieces of prompts side by side; and decode (its shape does not depend on the bucket,
                            since attention reads a row's own context and no more)

Programs take packed rows, so padding costs nothing here; a compiled shape only says how much memory a step may need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint import Checkpoint, open_checkpoint
from vllm.config import VllmConfig
from vllm.core.contract import HOST_SAMPLING, Capabilities
from vllm.logger import init_logger
from vllm.neuron.cpu.graph import Graph
from vllm.neuron.cpu.memory import COMPILE_BYTES, check_memory
from vllm.neuron.cpu.models import build_graph, resolve_architecture
from vllm.neuron.cpu.ops import KvDtype, NativeModel, memory_needed
from vllm.neuron.cpu.packing import LAYOUT_VERSION, Scheme, lay_out, pack
from vllm.neuron.cpu.plan import ProgramSpec, plan
from vllm.neuron.cpu.step import build_step
from vllm.neuron.device import DeviceModel, Progress
from vllm.neuron.model_input import Kind, ModelInput, ModelOutput

logger = init_logger(__name__)

COMPILER_VERSION = 2
SCORED_AT_ONCE = 64
"""Positions whose logits are in memory at once."""

_SCHEMES: dict[str, Scheme] = {"auto": "native", "float32": "f32", "bfloat16": "bf16"}
_QUANTISED: dict[str, Scheme] = {
    "int8_per_tensor": "int8_tensor",
    "int8_per_channel": "int8",
    "f8e4m3_per_tensor": "f8_tensor",
    "f8e4m3_per_channel": "f8",
    "int4": "q4_min",
}
_KV_DTYPES: dict[str, KvDtype] = {"bfloat16": "bf16", "float32": "f32", "fp8": "f8", "int8": "int8"}


class CpuDeviceModel(DeviceModel):
    """A loaded artifact, its KV cache, and its programs by name."""

    def __init__(self, config: VllmConfig, native: NativeModel, programs: dict[str, int]) -> None:
        self.native = native
        self.programs = programs
        self.block_size = config.cache_config.block_size or config.model_config.max_len
        self.capabilities = Capabilities(
            target="cpu",
            sampling=HOST_SAMPLING,
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
            "compiler": f"cpu-{COMPILER_VERSION}",
            "layout": LAYOUT_VERSION,
            "scheme": weight_scheme(config),
            "kv_dtype": kv_dtype(config),
            "mixed_tokens": mixed_tokens(config),
        }

    @classmethod
    def compile(cls, config: VllmConfig, directory: Path, progress: Progress) -> None:
        check_memory(config, {"compiling": COMPILE_BYTES})
        graph, checkpoint = _open(config)
        index = pack(graph, checkpoint, weight_scheme(config), directory / "weights.bin", progress)
        (directory / "index.json").write_text(json.dumps({**index, "kv": _heads(graph)}))
        (directory / "programs").mkdir()
        for name, spec in _programs(graph, config).items():
            (directory / "programs" / f"{name}.json").write_text(json.dumps(spec))

    @classmethod
    def check_fits(cls, config: VllmConfig) -> None:
        graph, checkpoint = _open(config)
        index, programs = lay_out(graph, checkpoint, weight_scheme(config)), _programs(graph, config).values()
        check_memory(config, memory_needed(index, programs, **_heads(graph), **cache_shape(config)))

    @classmethod
    def load(cls, config: VllmConfig, directory: Path) -> CpuDeviceModel:
        index = json.loads((directory / "index.json").read_text())
        specs: dict[str, ProgramSpec] = {
            path.stem: json.loads(path.read_text()) for path in sorted((directory / "programs").glob("*.json"))
        }
        check_memory(config, memory_needed(index, specs.values(), **index["kv"], **cache_shape(config)))
        native = NativeModel(directory / "weights.bin", index, **index["kv"], **cache_shape(config))
        programs = {name: native.add_program(spec) for name, spec in specs.items()}
        logger.info("cpu: %s kernels on %d threads", native.isa, native.num_threads)
        return cls(config, native, programs)

    def forward(self, model_input: ModelInput) -> ModelOutput:
        result = self.native.run(
            self.programs[self._program(model_input)],
            build_step(model_input, self.block_size),
            model_input.sampling,
            num_prompt_logprobs=model_input.num_prompt_logprobs,
        )
        rows = np.flatnonzero(model_input.samples)
        tokens = np.zeros((model_input.num_rows, 1), np.int32)
        if result.tokens is not None:
            tokens[rows, 0] = result.tokens
        logprobs = result.logprobs
        if logprobs is not None and len(rows) < model_input.num_rows:
            logprobs = logprobs.scattered(rows, model_input.num_rows)
        return ModelOutput(
            tokens=tokens,
            num_new=model_input.samples.astype(np.int32),
            logprobs=logprobs,
            prompt_logprobs=result.prompt_logprobs,
        )

    def memory(self) -> dict[str, int]:
        return self.native.memory()

    def shutdown(self) -> None:
        """Threads and memory go with the last reference."""

    def _program(self, model_input: ModelInput) -> str:
        if model_input.kind not in (Kind.PREFILL, Kind.CHUNK):
            return "decode"
        return "mixed" if self.capabilities.mixed_steps else f"prefill-{model_input.bucket}"


def _open(config: VllmConfig) -> tuple[Graph, Checkpoint]:
    """The model's graph, and its checkpoint, of which nothing but headers is read."""
    model = config.model_config
    resolve_architecture(model.hf_config)
    checkpoint = open_checkpoint(model.model_path or model.model, load_format=model.load_format)
    return build_graph(model.hf_config, model.max_len), checkpoint


def _programs(graph: Graph, config: VllmConfig) -> dict[str, ProgramSpec]:
    return {
        name: plan(graph, tokens, samples, default_top_k(config))
        for name, (tokens, samples) in program_shapes(config).items()
    }


def _heads(graph: Graph) -> dict[str, Any]:
    return {name: getattr(graph, name) for name in ("num_layers", "num_kv_heads", "head_dim", "vocab_size")}


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
    rows, prompts = config.neuron_config.batch_size, config.scheduler_config.prefill_batch_size
    if tokens := mixed_tokens(config):
        shapes = {"mixed": (tokens, max(rows, min(SCORED_AT_ONCE, tokens)))}
    else:
        shapes = {
            f"prefill-{bucket}": (bucket * prompts, max(prompts, min(SCORED_AT_ONCE, bucket)))
            for bucket in config.neuron_config.context_buckets
        }
    shapes["decode"] = (rows * (1 + config.scheduler_config.num_lookahead_tokens), rows)
    return shapes


def mixed_tokens(config: VllmConfig) -> int:
    """Most tokens of a mixed step; 0 where steps are not mixed."""
    scheduler = config.scheduler_config
    return int(scheduler.max_num_batched_tokens or 0) if scheduler.mixed_steps else 0


def weight_scheme(config: VllmConfig) -> Scheme:
    """What becomes of the weights. Raises ValueError for a quantisation there is no kernel for."""
    quantisation = config.neuron_config.quantization
    if quantisation is None:
        return _SCHEMES[config.model_config.dtype]
    if quantisation not in _QUANTISED:
        raise ValueError(
            f"the cpu target has no kernels for {quantisation} weights; it has {', '.join(sorted(_QUANTISED))}, "
            "and takes quantised GGUF files as they are"
        )
    return _QUANTISED[quantisation]


def kv_dtype(config: VllmConfig) -> KvDtype:
    """The KV cache's type: what was asked for, else float32 beside float32 weights and bfloat16 beside all others."""
    asked = config.cache_config.kv_cache_dtype
    if asked == "auto":
        return "f32" if config.model_config.dtype == "float32" else "bf16"
    if asked not in _KV_DTYPES:
        raise ValueError(f"the cpu target keeps KV as {', '.join(_KV_DTYPES)}, not as {asked}")
    return _KV_DTYPES[asked]


def default_top_k(config: VllmConfig) -> int:
    """How many most likely tokens are sampled from when `top_k` is disabled: the accelerator's `global_topk`."""
    return int(min(config.neuron_config.global_topk, config.model_config.vocab_size))
