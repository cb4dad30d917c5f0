"""Settings that cannot be had: refused with a reason instead of being ignored.

`refuse_options` looks at vLLM's settings, `refuse_keys` at the Neuron config. Both read the target's profile.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vllm.checkpoint.forms import plain_method, quant_method
from vllm.checkpoint.kind import is_gguf
from vllm.config import CacheConfig, ModelConfig, VllmConfig
from vllm.core.profile import KeyRule, TargetProfile
from vllm.settings.faults import Faults
from vllm.settings.kv_dtype import plain_kv_dtype
from vllm.settings.neuron_config import NeuronConfig

_UNSERVED = (
    KeyRule("token_tree_config", "drafts are a chain, not a tree"),
    KeyRule("is_medusa", "Medusa heads are not served"),
    KeyRule("is_eagle_draft", "it is set by NxD Inference on the draft's copy"),
    KeyRule("tensor_capture_config", "tensors cannot be captured or replaced while serving"),
    KeyRule("tensor_replacement_config", "tensors cannot be captured or replaced while serving"),
)
"""Keys of the Neuron config that no target serves."""


def refuse_options(config: VllmConfig, profile: TargetProfile, faults: Faults) -> None:
    """Settings of vLLM that mean something here but cannot be had."""
    _refuse_parallelism(config, faults)
    _refuse_model_options(config.model_config, faults)
    _refuse_kv_dtype(config.cache_config.kv_cache_dtype, profile, faults)
    if config.kv_transfer_config:
        faults.add("kv_transfer_config", config.kv_transfer_config, "KV transfer is not served yet", "Leave it out")
    _refuse_offloading(config.cache_config, profile, faults)


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
    path = Path(model.model_path or model.model)
    stored = "gguf" if is_gguf(path) else quant_method(model.hf_config)
    if model.quantization is not None and plain_method(model.quantization) != stored:
        faults.add(
            "quantization",
            model.quantization,
            f"the checkpoint is {stored or 'not quantised'}, and plain weights are quantised by the Neuron config",
            'Use override_neuron_config={"quantized": true, "quantization_dtype": "int8"}, or leave it out',
        )


def _refuse_kv_dtype(dtype: str, profile: TargetProfile, faults: Faults) -> None:
    if plain_kv_dtype(dtype) not in profile.kv_dtypes:
        why = f"the {profile.name} target does not keep KV in it"
        faults.add("kv_cache_dtype", dtype, why, f"Use {' or '.join(profile.kv_dtypes)}")


def refuse_offloaded_drafts(config: VllmConfig, faults: Faults) -> None:
    """config: with its speculation settled."""
    speculation = config.speculative_config
    if config.cache_config.offloads_kv and speculation is not None and speculation.uses_model:
        why, fix = (
            "offloaded prefixes hold the target's KV, and none of the draft's",
            'Use method "ngram", or do not offload KV',
        )
        faults.add(
            "speculative_config", speculation.method, why, fix, involves=["kv_offloading_size", "kv_offloading_dir"]
        )


def _refuse_offloading(cache: CacheConfig, profile: TargetProfile, faults: Faults) -> None:
    given = {
        "kv_offloading_size": cache.kv_offloading_size,
        "kv_offloading_dir": cache.kv_offloading_dir,
        "kv_offloading_dir_size": cache.kv_offloading_dir_size,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        if profile.offload_refusal:
            fix = "Leave it out; prefix caching on the device works without"
            faults.add(name, value, profile.offload_refusal, fix)
        elif isinstance(value, float | int) and value <= 0:
            faults.add(name, value, "must be more than 0 GiB", "For example 4")
        elif name == "kv_offloading_dir_size" and cache.kv_offloading_dir is None:
            faults.add(name, value, "there is no kv_offloading_dir", "Name one, or leave it out")
    if cache.offloads_kv and cache.enable_prefix_caching is False:
        name = next(iter(asked))
        why = "what is offloaded is cached prefixes, and enable_prefix_caching is False"
        faults.add(name, asked[name], why, "Leave it out, or use enable_prefix_caching")


def refuse_keys(options: VllmConfig, config: NeuronConfig, profile: TargetProfile, faults: Faults) -> None:
    """Keys of the Neuron config that this target, or every target, cannot serve."""
    _refuse_by_rules(config, (*_UNSERVED, *profile.key_rules), faults)
    _refuse_speculation(options, profile, faults)
    if config.torch_dtype not in profile.dtypes:
        why = f"the {profile.name} target does not compute in it"
        faults.add("dtype", config.torch_dtype, why, f"Use {' or '.join(profile.dtypes)}")
    _refuse_quantization(config, profile, faults)


def _refuse_by_rules(config: NeuronConfig, rules: Iterable[KeyRule], faults: Faults) -> None:
    for rule in rules:
        section, _, name = rule.key.rpartition(".")
        owner = getattr(config, section) if section else config
        if owner is not None and rule.refuses(value := getattr(owner, name)):
            faults.add(rule.key, value, rule.why, rule.fix)


def _refuse_speculation(options: VllmConfig, profile: TargetProfile, faults: Faults) -> None:
    speculation, methods = options.speculative_config, profile.speculation_methods
    if speculation is not None and speculation.method not in methods:
        why = f"the {profile.name} target does not speculate by {speculation.method} yet"
        fix = f"Use {' or '.join(methods)}, or leave it out" if methods else "Leave it out"
        faults.add("speculative_config", {"method": speculation.method}, why, fix)


def _refuse_quantization(config: NeuronConfig, profile: TargetProfile, faults: Faults) -> None:
    form, forms = config.quantization, profile.quantizations
    if form is not None and forms is not None and form not in forms:
        why = f"the {profile.name} target has no kernels for {form} weights"
        fix = f"It has {', '.join(sorted(forms))}, and takes quantised GGUF files as they are"
        faults.add("quantization_dtype", config.quantization_dtype, why, fix, involves=["quantization_type"])
