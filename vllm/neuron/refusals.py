"""What no target can do yet, or one cannot: refused with a reason instead of being ignored.

`refuse_options` looks at vLLM's settings, `refuse_keys` at the Neuron config.
"""

from __future__ import annotations

import importlib

from vllm import envs
from vllm.config import CacheConfig, ModelConfig, VllmConfig
from vllm.neuron.faults import Faults
from vllm.neuron.kv_dtype import refuse_kv_dtype, refuse_kv_keys
from vllm.neuron.neuron_config import NeuronConfig

BLOCK_KV_TARGETS = frozenset({"cpu", "null", "neuronx"})
"""Targets on which the engine serves block KV: prefix caching and chunked prefill."""

CPU_BLOCK_MULTIPLE = 16
"""The cpu target's attention takes so many positions at once."""

DTYPES = {
    "cpu": ("bfloat16", "float32"),
    "null": ("bfloat16", "float16", "float32"),
    "neuronx": ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"),
}
"""Arithmetic types by target."""

SPECULATIVE_METHODS = {
    "cpu": ("ngram", "draft_model", "eagle", "eagle3"),
    "null": ("ngram", "draft_model", "eagle", "eagle3"),
    "neuronx": ("draft_model", "eagle", "eagle3"),
}
"""Methods of speculative decoding by target."""

_UNSERVED = {
    "drafts are a chain, not a tree": ("token_tree_config",),
    "Medusa heads are not served": ("is_medusa",),
    "it is set by NxD Inference on the draft's copy": ("is_eagle_draft",),
    "tensors cannot be captured or replaced while serving": ("tensor_capture_config", "tensor_replacement_config"),
}


def refuse_options(config: VllmConfig, target: str, faults: Faults) -> None:
    """Settings of vLLM that mean something here but cannot be had."""
    _refuse_parallelism(config, faults)
    _refuse_model_options(config.model_config, faults)
    refuse_kv_dtype(config.cache_config.kv_cache_dtype, target, faults)
    if config.kv_transfer_config:
        faults.add("kv_transfer_config", config.kv_transfer_config, "KV transfer is not served yet", "Leave it out")
    _refuse_offloading(config.cache_config, target, faults)
    if config.cache_config.offloads_kv and config.speculative_config and config.speculative_config.method != "ngram":
        why = "offloaded prefixes hold the target's KV, and none of the draft's"
        faults.add(
            "speculative_config", config.speculative_config.method, why, 'Use method "ngram", or do not offload KV'
        )
    if target not in BLOCK_KV_TARGETS:
        _refuse_block_kv(config, faults)


def _refuse_parallelism(config: VllmConfig, faults: Faults) -> None:
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size != 1:
        why = "layers are not spread over stages"
        faults.add("pipeline_parallel_size", parallel.pipeline_parallel_size, why, "Use tensor_parallel_size")
    if parallel.data_parallel_size != 1:
        why = "one engine is one replica"
        fix = "Run one server a replica behind a load balancer"
        faults.add("data_parallel_size", parallel.data_parallel_size, why, fix)
    if parallel.distributed_executor_backend not in (None, "uni"):
        why = "one process drives all cores of a host"
        faults.add(
            "distributed_executor_backend", parallel.distributed_executor_backend, why, 'Use "uni", or leave it out'
        )


def _refuse_model_options(model: ModelConfig, faults: Faults) -> None:
    if model.trust_remote_code:
        faults.add("trust_remote_code", True, "code that comes with a checkpoint is never run", "Leave it out")
    is_gguf = (model.model_path or model.model).endswith(".gguf")
    if model.quantization is not None and not (model.quantization == "gguf" and is_gguf):
        faults.add(
            "quantization",
            model.quantization,
            "quantisation is a matter of the Neuron config, and of the checkpoint where that is quantised already",
            'Use override_neuron_config={"quantized": true, "quantization_dtype": "int8"}, or leave it out',
        )


def _refuse_offloading(cache: CacheConfig, target: str, faults: Faults) -> None:
    given = {
        "kv_offloading_size": cache.kv_offloading_size,
        "kv_offloading_dir": cache.kv_offloading_dir,
        "kv_offloading_dir_size": cache.kv_offloading_dir_size,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        if target == "neuronx":
            why = "the library gives no way to copy KV blocks between NeuronCores and the host"
            faults.add(name, value, why, "Leave it out; prefix caching on the device works without")
        elif isinstance(value, float | int) and value <= 0:
            faults.add(name, value, "must be more than 0 GiB", "For example 4")
        elif name == "kv_offloading_dir_size" and cache.kv_offloading_dir is None:
            faults.add(name, value, "there is no kv_offloading_dir", "Name one, or leave it out")
    if cache.offloads_kv and cache.enable_prefix_caching is False:
        name = next(iter(asked))
        why = "what is offloaded is cached prefixes, and enable_prefix_caching is False"
        faults.add(name, asked[name], why, "Leave it out, or use enable_prefix_caching")


def _refuse_block_kv(config: VllmConfig, faults: Faults) -> None:
    why = "the KV cache is contiguous on this target: block KV is not served yet"
    if config.cache_config.enable_prefix_caching:
        faults.add("enable_prefix_caching", True, why, "Use --no-enable-prefix-caching, or leave it out")
    if config.scheduler_config.enable_chunked_prefill:
        faults.add("enable_chunked_prefill", True, why, "Use --no-enable-chunked-prefill, or leave it out")
    elif config.scheduler_config.enable_chunked_prefill is None and envs.DISABLE_NEURON_CUSTOM_SCHEDULER:
        faults.add("DISABLE_NEURON_CUSTOM_SCHEDULER", True, why, "Unset it, or use --no-enable-chunked-prefill")


def refuse_keys(options: VllmConfig, config: NeuronConfig, target: str, faults: Faults) -> None:
    """Keys of the Neuron config that this target, or every target, cannot serve."""
    for reason, names in _UNSERVED.items():
        for name in names:
            if value := getattr(config, name):
                faults.add(name, value, reason, "Leave it out")
    refuse_kv_keys(config, target, faults)
    if config.is_block_kv_layout and target not in BLOCK_KV_TARGETS:
        why = f"block KV is not served on the {target} target yet"
        faults.add("is_block_kv_layout", True, why, "Leave out what asks for it")
    _refuse_speculation(options, target, faults)
    dtypes = DTYPES.get(target, ())
    if dtypes and config.torch_dtype not in dtypes:
        why = f"the {target} target does not compute in it"
        faults.add("dtype", config.torch_dtype, why, f"Use {' or '.join(dtypes)}")
    if target == "neuronx":
        _refuse_on_accelerator(options, config, faults)
    else:
        _refuse_static_sampling(config, target, faults)
    if target == "cpu":
        _refuse_uneven_blocks(config, faults)
    if target == "cpu" and config.modules_to_not_convert:
        why = "the cpu target knows no exceptions from quantisation"
        faults.add("modules_to_not_convert", config.modules_to_not_convert, why, "Leave it out")


def _refuse_speculation(options: VllmConfig, target: str, faults: Faults) -> None:
    speculation, methods = options.speculative_config, SPECULATIVE_METHODS.get(target, ())
    if speculation is not None and speculation.method not in methods:
        why = f"the {target} target does not speculate by {speculation.method} yet"
        fix = f"Use {' or '.join(methods)}, or leave it out" if methods else "Leave it out"
        faults.add("speculative_config", {"method": speculation.method}, why, fix)


def _refuse_uneven_blocks(config: NeuronConfig, faults: Faults) -> None:
    size = config.pa_block_size
    if size < config.seq_len and size % CPU_BLOCK_MULTIPLE:
        below = max(size // CPU_BLOCK_MULTIPLE, 1) * CPU_BLOCK_MULTIPLE
        why = f"the cpu target reads KV in blocks of a multiple of {CPU_BLOCK_MULTIPLE} tokens"
        faults.add("block_size", size, why, f"Use {below}, {below + CPU_BLOCK_MULTIPLE}, or leave it out")


def _refuse_static_sampling(config: NeuronConfig, target: str, faults: Faults) -> None:
    sampling = config.on_device_sampling_config
    if sampling is not None and not sampling.dynamic:
        why = f"the {target} target compiles no sampling values in: each request brings its own"
        faults.add("on_device_sampling_config.dynamic", False, why, "Leave it out")
    if sampling is not None and sampling.deterministic:
        why = f"the {target} target draws by each request's seed"
        faults.add("on_device_sampling_config.deterministic", True, why, "Leave it out, and give requests a seed")


def _refuse_on_accelerator(options: VllmConfig, config: NeuronConfig, faults: Faults) -> None:
    checks = importlib.import_module("vllm.neuron.neuronx.checks")
    checks.check(options, config, faults)
    if config.is_block_kv_layout:
        _refuse_odd_blocks(config, faults)
    if config.quantized and config.quantization_dtype == "int4":
        faults.add("quantization_dtype", "int4", "only the cpu target has it", 'Use "int8" or "f8e4m3"')
    if config.quantized and not config.quantized_checkpoints_path:
        why = "the library reads quantised weights from quantized_checkpoints_path"
        faults.add("quantized", True, why, "Set quantized_checkpoints_path")


def _refuse_odd_blocks(config: NeuronConfig, faults: Faults) -> None:
    size, chunked = config.pa_block_size, config.chunked_prefill_config
    if size & (size - 1):
        faults.add("block_size", size, "a KV block must be a power of two long", "Use 16, 32, 64 or 128")
    if chunked is not None and chunked.kernel_kv_tile_size % size:
        why = f"must divide kernel_kv_tile_size={chunked.kernel_kv_tile_size}"
        faults.add("block_size", size, why, "Use a smaller power of two")
