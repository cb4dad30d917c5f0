"""`NeuronConfig`: what a model is compiled and served with, in NxD Inference's own terms.

Built from vLLM's settings (`default_neuron_config`) and the user's overrides; typed, range-checked and cross-checked
when built, and frozen after. Every key has its meaning in `neuron_config_keys`. What NxD Inference derives or switches
silently is derived here too, so `to_dict()` is the configuration in effect; it is part of an artifact's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm import envs
from vllm.config import VllmConfig
from vllm.core.profile import TargetProfile
from vllm.settings import buckets
from vllm.settings.faults import Faults, NeuronConfigError
from vllm.settings.lora import lora_entries, with_swapping
from vllm.settings.neuron_config_checks import ADVICE, check
from vllm.settings.neuron_config_keys import ModelKeys
from vllm.settings.neuron_config_sections import MAX_GLOBAL_TOPK, OnDeviceSamplingConfig
from vllm.settings.section import Section, keys, plain
from vllm.settings.speculation import neuron_keys

__all__ = ["NeuronConfig", "NeuronConfigError", "OnDeviceSamplingConfig", "default_neuron_config", "torch_dtype"]

_IMPLIED_BY = {
    "enable_fused_speculation": ["enable_eagle_speculation"],
    "mlp_kernel_enabled": ["mlp_tkg_nki_kernel_enabled"],
    "attn_block_tkg_nki_kernel_enabled": ["attn_tkg_nki_kernel_enabled", "attn_tkg_builtin_kernel_enabled"],
    "output_logits": ["tensor_capture_config"],
}
_QUANTIZED_MLP = {"quantization_type": "per_channel_symmetric", "quantization_dtype": "f8e4m3"}


@dataclass(frozen=True, kw_only=True)
class NeuronConfig(ModelKeys):
    """The resolved configuration. Lists of buckets given by users end at their maximum (see `notices`)."""

    @classmethod
    def _what(cls) -> str:
        return "the Neuron configuration"

    @classmethod
    def _advice(cls, name: str) -> tuple[str, str] | None:
        return ADVICE.get(name)

    def _check(self, faults: Faults) -> None:
        self._apply_implications()
        check(self, faults)
        if self.on_device_sampling_config is not None:
            self._set("notices", self.notices + self.on_device_sampling_config.notices)
        if not faults:
            self._extend("context_encoding_buckets", self.max_context_length)
            self._extend("token_generation_buckets", self.max_length)
            self._complete_grid()

    def _apply_implications(self) -> None:
        for name, causes in _IMPLIED_BY.items():
            if any(getattr(self, cause) for cause in causes):
                self._set(name, True)
        if self.is_mlp_quantized:
            for name, value in _QUANTIZED_MLP.items():
                self._set(name, value)

    def _extend(self, name: str, maximum: int) -> None:
        user = getattr(self, name)
        if user is None:
            return
        full = buckets.extended(user, maximum)
        if full != user:
            self._set(name, full)
            self._notice(f"{name}={user} ends below {maximum}, the longest legal length: {maximum} was added to it")

    def _complete_grid(self) -> None:
        """Under prefix caching, prefix and context buckets form one grid: where one is given, both are."""
        names = ("prefix_buckets", "context_encoding_buckets")
        missing = [name for name in names if getattr(self, name) is None]
        if self.is_prefix_caching and self.enable_bucketing and len(missing) == 1:
            self._set(missing[0], buckets.generate_buckets(buckets.SHORTEST_PREFIX_BUCKET, self.max_context_length))

    @property
    def context_buckets(self) -> list[int]:
        """Ladder of context encoding, in prompt tokens."""
        return buckets.ladder(self.max_context_length, self.context_encoding_buckets, self.enable_bucketing)

    @property
    def token_buckets(self) -> list[int]:
        """Ladder of token generation, in positions."""
        return buckets.ladder(self.max_length, self.token_generation_buckets, self.enable_bucketing)

    @property
    def on_device_sampling(self) -> bool:
        """Whether the device samples; otherwise logits come back and the host does."""
        return self.on_device_sampling_config is not None

    @property
    def global_topk(self) -> int:
        """How many most likely tokens a disabled top_k leaves to sample from; 0: all of them (host sampling)."""
        return self.on_device_sampling_config.global_topk if self.on_device_sampling_config else 0

    @property
    def is_mlp_quantized(self) -> bool:
        return self.quantized_mlp_kernel_enabled or self.activation_quantization_type is not None

    @property
    def is_chunked_prefill(self) -> bool:
        return self.chunked_prefill_config is not None

    @property
    def quantization(self) -> str | None:
        """Form of the weights: None, "int4", or "<dtype>_<what a scale belongs to>" as in "int8_per_channel"."""
        if not self.quantized:
            return None
        if self.quantization_dtype == "int4":
            return "int4"
        return f"{self.quantization_dtype}_{self.quantization_type.removesuffix('_symmetric')}"


def heeded(section: Section, profile: TargetProfile) -> dict[str, Any]:
    """`to_dict` without the keys that have no effect on the target."""
    return {
        item.name: heeded(value, profile) if isinstance(value := getattr(section, item.name), Section) else plain(value)
        for item in keys(type(section))
        if profile.heeds_accelerator_keys or not item.metadata["accelerator_only"]
    }


def torch_dtype(dtype: str) -> str:
    """NxD Inference's name of a vLLM dtype; "auto" is bfloat16."""
    return {"auto": "bfloat16", "half": "float16", "float": "float32"}.get(dtype, dtype)


def default_neuron_config(config: VllmConfig, overrides: Mapping[str, Any] | None = None) -> NeuronConfig:
    """The Neuron config that vLLM's settings give, with `overrides` replacing single keys. Raises NeuronConfigError."""
    faults = Faults()
    neuron_config = examined_neuron_config(config, overrides or {}, faults)
    faults.raise_if_any("the Neuron configuration")
    return neuron_config


def examined_neuron_config(config: VllmConfig, overrides: Mapping[str, Any], faults: Faults) -> NeuronConfig:
    """`default_neuron_config` without raising: keys at fault hold what they would without the override.

    `config` must hold final numbers: max_model_len, max_num_seqs, block_size, num_blocks (see `settings.resolve`).
    Bucket lists come from the environment where the overrides say nothing. An overriding on_device_sampling_config
    replaces single entries of vLLM's too.
    """
    values = {**_from_vllm(config), **overrides}
    chunked, sampling = values["chunked_prefill_config"], values["on_device_sampling_config"]
    if isinstance(chunked, Mapping):
        values["chunked_prefill_config"] = {"max_num_seqs": values["batch_size"], **chunked}
    if isinstance(sampling, Mapping):
        values["on_device_sampling_config"] = {**_sampling_of_requests(config), **sampling}
    lora, given = lora_entries(config), overrides.get("lora_config")
    if lora is not None and isinstance(given, Mapping):
        values["lora_config"] = with_swapping(lora, given, config.lora_config.max_loras)
    return NeuronConfig.examined(values, faults)


def _from_vllm(config: VllmConfig) -> dict[str, Any]:
    batch_size = config.scheduler_config.max_num_seqs
    max_model_len = config.model_config.max_len
    is_prefix_caching = bool(config.cache_config.enable_prefix_caching)
    is_chunked = bool(config.scheduler_config.enable_chunked_prefill)
    return {
        "tp_degree": config.parallel_config.tensor_parallel_size,
        "ctx_batch_size": 1,
        "batch_size": batch_size,
        "max_context_length": max_model_len,
        "seq_len": max_model_len,
        "pa_num_blocks": config.cache_config.num_blocks or batch_size,
        "pa_block_size": config.cache_config.block_size or max_model_len,
        "is_block_kv_layout": is_prefix_caching or is_chunked,
        "is_prefix_caching": is_prefix_caching,
        "chunked_prefill_config": {"max_num_seqs": batch_size} if is_chunked else None,
        "enable_bucketing": True,
        "context_encoding_buckets": envs.NEURON_CONTEXT_LENGTH_BUCKETS or None,
        "token_generation_buckets": envs.NEURON_TOKEN_GEN_BUCKETS or None,
        "quantized": False,
        "torch_dtype": torch_dtype(config.model_config.dtype),
        "padding_side": "right",
        "lora_config": lora_entries(config),
        "on_device_sampling_config": None if envs.NEURON_ON_DEVICE_SAMPLING_DISABLED else {},
        **neuron_keys(config.speculative_config),
    }


def _sampling_of_requests(config: VllmConfig) -> dict[str, Any]:
    """Each request brings its own sampling, out of as many tokens as the library can or the vocabulary has."""
    vocab_size = int(config.model_config.hf_config.get("vocab_size") or MAX_GLOBAL_TOPK)
    return {"dynamic": True, "global_topk": min(MAX_GLOBAL_TOPK, vocab_size)}
