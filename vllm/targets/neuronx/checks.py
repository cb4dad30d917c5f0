"""What would fail, or go wrong unseen, in the installed version of the library: found before it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.checkpoint.kind import is_gguf
from vllm.config import VllmConfig
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.targets.neuronx.adapters import check_adapters, check_version
from vllm.targets.neuronx.chunks import check_chunks
from vllm.targets.neuronx.model_entries import check_entries
from vllm.targets.neuronx.registry import check_architecture
from vllm.targets.neuronx.speculation import check_speculation, check_speculation_version
from vllm.targets.neuronx.versions import (
    KEYS_SINCE,
    KEYS_UNTIL,
    NEWEST,
    OLDEST,
    PACKAGE,
    SAMPLING_KEYS_SINCE,
    Version,
    installed,
    parse_version,
)
from vllm.targets.neuronx.vision import check_images

_WHOLE_ATTENTION_ONLY = (
    "flash_decoding_enabled",
    "attn_block_tkg_nki_kernel_enabled",
    "is_prefix_caching",
    "chunked_prefill_config",
)


def check(config: VllmConfig, neuron: NeuronConfig, faults: Faults) -> None:
    """Add the faults of a configuration. Where the library is missing, those that need no version."""
    check_served(neuron, faults)
    check_blocks(neuron, faults)
    check_quantized(neuron, faults)
    check_speculation(config, neuron, faults)
    check_chunks(config, neuron, faults)
    check_adapters(neuron, list(config.model_config.hf_config.get("architectures") or []), faults)
    check_images(config.model_config.hf_config, neuron, faults)
    check_attention(neuron, config.model_config.hf_config, faults)
    check_files(config, neuron, faults)
    text = installed()
    if not text:
        return
    version = parse_version(text)
    if OLDEST <= version <= NEWEST:
        check_with(config, neuron, version, faults)
    else:
        faults.add(PACKAGE, text, f"only {OLDEST} to {NEWEST} are known", f"Install {NEWEST}")


def check_with(config: VllmConfig, neuron: NeuronConfig, version: Version, faults: Faults) -> None:
    """What depends on the library's version: the model, its config's entries, and keys."""
    hf_config = config.model_config.hf_config
    check_architecture(hf_config, version, faults)
    check_entries(hf_config, neuron, neuron.seq_len, version, faults)
    check_keys(neuron, version, faults)
    check_version(neuron.lora_config, version, faults)
    check_speculation_version(config, version, faults)


def check_keys(neuron: NeuronConfig, version: Version, faults: Faults) -> None:
    """Keys that the library of this version does not know, or no longer heeds."""
    for name in sorted(neuron.changed()):
        since = KEYS_SINCE.get(name, OLDEST)
        if version < since:
            why = f"NxD Inference has it from {since}; {version} would ignore it"
            faults.add(name, getattr(neuron, name), why, "Leave it out, or install a newer version")
        until, fix = KEYS_UNTIL.get(name, (NEWEST, ""))
        if version > until:
            faults.add(name, getattr(neuron, name), f"NxD Inference {version} no longer heeds it", fix)
    sampling = neuron.on_device_sampling_config
    for name in sorted(sampling.changed() if sampling else ()):
        since = SAMPLING_KEYS_SINCE.get(name, OLDEST)
        if version < since:
            why = f"NxD Inference has it from {since}; {version} would ignore it"
            faults.add(f"on_device_sampling_config.{name}", getattr(sampling, name), why, "Leave it out")


def check_attention(neuron: NeuronConfig, hf_config: Mapping[str, Any], faults: Faults) -> None:
    """What attention in chunks excludes, where a sequence is longer than one."""
    chunk = hf_config.get("attention_chunk_size")
    if not chunk or chunk >= neuron.seq_len:
        return
    for name in _WHOLE_ATTENTION_ONLY:
        if value := getattr(neuron, name):
            why = f"the model attends in chunks of {chunk} tokens, shorter than max_model_len"
            faults.add(name, value, why, f"Leave it out, or use max_model_len={chunk} or less")


def check_served(neuron: NeuronConfig, faults: Faults) -> None:
    """Modes of the library that the engine does not drive."""
    if neuron.ctx_batch_size != 1:
        why = "prompts are encoded one at a time: padding a batch of them would overwrite running sequences"
        faults.add("ctx_batch_size", neuron.ctx_batch_size, why, "Use 1, or leave it out")
    if neuron.on_cpu:
        faults.add("on_cpu", True, "it is the library's own test mode", 'Leave it out; device="cpu" serves on a CPU')
    if neuron.is_prefix_caching and not neuron.is_chunked_prefill:
        _check_prefix_caching(neuron, faults)
    sampling = neuron.on_device_sampling_config
    if sampling is not None and not sampling.dynamic:
        why = "the program would sample with compiled values, whatever a request asks for"
        faults.add("on_device_sampling_config.dynamic", False, why, "Leave it out")


def _check_prefix_caching(neuron: NeuronConfig, faults: Faults) -> None:
    if neuron.batch_size == 1:
        why = "prefix caching is known to go wrong with one row"
        faults.add("max_num_seqs", 1, why, "Use 2 or more, or --no-enable-prefix-caching")
    if neuron.seq_len % neuron.pa_block_size:
        why = f"block tables are max_model_len={neuron.seq_len} // block_size wide: the last tokens would have no block"
        faults.add("block_size", neuron.pa_block_size, why, "Use a divisor of max_model_len")
    if not neuron.enable_bucketing:
        faults.add("enable_bucketing", False, "prefix caching needs its grid of buckets", "Leave it out")


def check_blocks(neuron: NeuronConfig, faults: Faults) -> None:
    """Lengths of KV blocks."""
    if not neuron.is_block_kv_layout:
        return
    size, chunked = neuron.pa_block_size, neuron.chunked_prefill_config
    if size & (size - 1):
        faults.add("block_size", size, "a KV block must be a power of two long", "Use 16, 32, 64 or 128")
    if chunked is not None and chunked.kernel_kv_tile_size % size:
        why = f"must divide kernel_kv_tile_size={chunked.kernel_kv_tile_size}"
        faults.add("block_size", size, why, "Use a smaller power of two")


def check_quantized(neuron: NeuronConfig, faults: Faults) -> None:
    """Forms of quantised weights, and where they come from."""
    if neuron.quantized and neuron.quantization_dtype == "int4":
        faults.add("quantization_dtype", "int4", "only the cpu target has it", 'Use "int8" or "f8e4m3"')
    if neuron.quantized and not neuron.quantized_checkpoints_path:
        why = "the library reads quantised weights from quantized_checkpoints_path"
        faults.add("quantized", True, why, "Set quantized_checkpoints_path")


def check_files(config: VllmConfig, neuron: NeuronConfig, faults: Faults) -> None:
    """What the library reads from disk."""
    model = Path(config.model_config.model_path or config.model_config.model)
    if is_gguf(model):
        fix = "Use the model's safetensors checkpoint"
        faults.add("model", str(model), "NxD Inference does not read GGUF files", fix)
    if config.model_config.load_format not in ("auto", "safetensors", "hf"):
        given = config.model_config.load_format
        faults.add("load_format", given, "NxD Inference reads safetensors checkpoints", 'Use "auto"')
    path = neuron.quantized_checkpoints_path
    if neuron.quantized and path and not any(Path(path).glob("*.safetensors")):
        why = "it must be a directory of safetensors files; pickled .pt files are not opened"
        faults.add("quantized_checkpoints_path", path, why, "Write one with the library's save_quantized_state_dict")
