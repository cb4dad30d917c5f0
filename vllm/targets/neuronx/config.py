"""From a resolved `VllmConfig` to the library's `NeuronConfig` and `InferenceConfig`.

The library takes any keyword and warns about those it does not know. So what was given is read back from the object:
a key that is missing there, or has become another value, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm.checkpoint.nested_config import TEXT, lowered
from vllm.config import VllmConfig
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.neuron_config_sections import LoraServingConfig
from vllm.settings.options import merged_override
from vllm.settings.section import Section
from vllm.settings.vision_shapes import is_image_to_text
from vllm.targets.neuronx.adapters import library_entries
from vllm.targets.neuronx.chunks import chunk_entries
from vllm.targets.neuronx.library import Library
from vllm.targets.neuronx.model_entries import completed
from vllm.targets.neuronx.registry import known_architecture
from vllm.targets.neuronx.speculation import as_draft, draft_entries, fused_spec_config, speculation_entries
from vllm.targets.neuronx.versions import KEYS_SINCE, OLDEST, Version
from vllm.targets.neuronx.vision import vision_entries

Entries = dict[str, Any]

_ALWAYS = (
    "tp_degree",
    "batch_size",
    "ctx_batch_size",
    "tkg_batch_size",
    "max_batch_size",
    "seq_len",
    "max_context_length",
    "max_length",
    "padding_side",
    "is_continuous_batching",
    "enable_bucketing",
    "torch_dtype",
    "quantized",
    "is_block_kv_layout",
    "is_prefix_caching",
    "pa_num_blocks",
    "pa_block_size",
    "on_device_sampling_config",
    "logical_nc_config",
)
"""Said whether or not they are the library's defaults."""

_NOT_THE_DECODERS = ("vision_neuron_config",)
_DTYPES = ("torch_dtype", "attention_dtype", "rpl_reduce_dtype", "router_dtype")
_ROUTER = ("router_dtype", "act_fn", "disable_normalize_top_k_affinities")
"""Keys that MoENeuronConfig turns into others: they cannot be read back."""


def is_portable(config: VllmConfig) -> bool:
    """Whether weights go into the artifact, sharded: unless `save_sharded_checkpoint` was set to false."""
    override = merged_override(config.neuron_options, Faults())
    return bool(override.get("save_sharded_checkpoint", True)) and not config.neuron_config.skip_sharding


def neuron_entries(config: VllmConfig, version: Version) -> Entries:
    """Keyword arguments of the library's NeuronConfig, as plain values and sections."""
    neuron: NeuronConfig = config.neuron_config
    names = [*_ALWAYS, *(name for name in neuron.changed() if name not in (*_ALWAYS, *_NOT_THE_DECODERS))]
    entries = {name: _copied(getattr(neuron, name)) for name in names if version >= KEYS_SINCE.get(name, OLDEST)}
    entries["save_sharded_checkpoint"] = is_portable(config)
    entries |= chunk_entries(config)
    is_image_model = is_image_to_text(config.model_config.hf_config)
    if (neuron.enable_bucketing or is_image_model) and not neuron.is_block_kv_layout:
        entries["context_encoding_buckets"] = list(neuron.context_buckets)
        entries["token_generation_buckets"] = list(neuron.token_buckets)
    entries |= speculation_entries(config)
    if not entries.pop("overrides_torch_dtype", True):
        del entries["torch_dtype"]
    return entries


def _copied(value: Any) -> Any:
    """The library sorts lists in place."""
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def build_neuron_config(entries: Entries, library: Library, neuron_config_cls: Callable[..., Any]) -> Any:
    """The library's object, of the architecture's class. Raises NeuronConfigError for what it would not heed."""
    import torch

    given = dict(entries)
    for name in _DTYPES:
        if isinstance(given.get(name), str):
            given[name] = getattr(torch, given[name])
    sampling = given.get("on_device_sampling_config")
    if sampling is not None and entries.get("speculation_length"):
        chosen = {"dynamic": False, "do_sample": False, "global_topk": sampling.global_topk}
        given["on_device_sampling_config"] = library.config.OnDeviceSamplingConfig(**chosen)
    elif sampling is not None:
        chosen = {"dynamic": True, "deterministic": False, "global_topk": sampling.global_topk, **sampling.changed()}
        given["on_device_sampling_config"] = library.config.OnDeviceSamplingConfig(**chosen)
    for name, value in given.items():
        if isinstance(value, LoraServingConfig):
            given[name] = library_entries(value, library.version)
        elif isinstance(value, Section):
            given[name] = value.to_dict()
    built = neuron_config_cls(**given)
    faults = Faults()
    _check_heeded({name: value for name, value in entries.items() if name not in _ROUTER}, built, "", faults)
    if given.get("lora_config"):
        _check_adapters_heeded(given["lora_config"], built.lora_config, faults)
    if sampling is not None:
        _check_heeded(chosen, built.on_device_sampling_config, "on_device_sampling_config.", faults)
    faults.raise_if_any(f"the configuration, as NxD Inference {library.version} reads it")
    return built


def _check_heeded(given: Mapping[str, Any], built: Any, prefix: str, faults: Faults) -> None:
    for name, value in given.items():
        if not hasattr(built, name):
            faults.add(prefix + name, value, "the library does not know this key, and would ignore it", "Leave it out")
        elif isinstance(value, (bool, int, list)) and getattr(built, name) != value:
            used = getattr(built, name)
            faults.add(prefix + name, value, f"the library would use {used!r} instead", "Leave it out")


def _check_adapters_heeded(given: Mapping[str, Any], built: Any, faults: Faults) -> None:
    """Adapters in their order, which their numbers follow from."""
    names = list(built.lora_ckpt_paths or {})
    if names != list(given["lora_ckpt_paths"] or {}):
        why = f"the library would serve {', '.join(names) or 'none'}"
        faults.add("lora_config.lora_ckpt_paths", given["lora_ckpt_paths"], why, "Leave it out")


def build_inference_config(config: VllmConfig, library: Library, application: Any) -> Any:
    """The InferenceConfig that an application of this class is made with."""
    entries, model = neuron_entries(config, library.version), config.model_config
    config_cls = application.get_config_cls()
    neuron_config = build_neuron_config(entries, library, application.get_neuron_config_cls())

    def build_draft(draft: Any, hf_config: Mapping[str, Any], path: str) -> Any:
        own = as_draft(build_neuron_config(draft_entries(entries), library, draft.get_neuron_config_cls()))
        return draft.get_config_cls()(own, load_config=_load_config(hf_config, path, library))

    load_config = _load_config(model.hf_config, model.model_path or model.model, library)
    if is_image_to_text(model.hf_config):
        of_vision = vision_entries(config, entries, library.version)
        vision_config = build_neuron_config(of_vision, library, application.get_neuron_config_cls())
        return config_cls(text_neuron_config=neuron_config, vision_neuron_config=vision_config, load_config=load_config)
    fused = fused_spec_config(config, library, application, build_draft)
    return config_cls(neuron_config, load_config=load_config, **({"fused_spec_config": fused} if fused else {}))


def _load_config(model_config: Mapping[str, Any], path: str, library: Library) -> Callable[[Any], None]:
    """The hook that gives the library the model's own config: no file is read again, no code of a checkpoint is run.

    Entries that the installed transformers keeps elsewhere (rope_theta from 5 on) are set under their plain names.
    """
    import transformers

    given = lowered(completed(model_config))
    entries = {name: value for name, value in given.items() if name not in ("model_type", "torch_dtype")}
    hf_config = transformers.AutoConfig.for_model(model_config["model_type"], **entries)
    from_library = library.load_pretrained_config(hf_config=hf_config)

    def load_config(inference_config: Any) -> None:
        from_library(inference_config)
        _complete(inference_config, entries)
        if is_image_to_text(model_config):
            _complete(inference_config.text_config, entries[TEXT])
            _complete(inference_config.vision_config, _rotation_of(hf_config.vision_config))
        if known_architecture(model_config) == "MistralForCausalLM":
            # Never reached; from 0.7 on the library would keep a cache of its length.
            inference_config.sliding_window = None
        inference_config._name_or_path = path

    return load_config


def _rotation_of(hf_config: Any) -> Entries:
    parameters = getattr(hf_config, "rope_parameters", None)
    return {"rope_theta": parameters["rope_theta"]} if parameters else {}


def _complete(built: Any, entries: Mapping[str, Any]) -> None:
    """Set what `built` (an object or a mapping) lacks of `entries`."""
    for name, value in entries.items():
        if isinstance(built, dict):
            built.setdefault(name, value)
        elif not hasattr(built, name):
            setattr(built, name, value)
