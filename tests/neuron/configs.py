"""Configs to resolve, without a checkpoint on disk."""

from __future__ import annotations

from typing import Any

from vllm.config import (
    CacheConfig,
    LoRAConfig,
    ModelConfig,
    NeuronOptions,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeOptions,
    VllmConfig,
)

TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}

_PARTS = {
    "model_config": ModelConfig,
    "cache_config": CacheConfig,
    "scheduler_config": SchedulerConfig,
    "parallel_config": ParallelConfig,
    "lora_config": LoRAConfig,
    "neuron_options": NeuronOptions,
    "speculative_options": SpeculativeOptions,
}


def build(**options: Any) -> VllmConfig:
    """A VllmConfig from flat options, as `LLM` takes them; TinyLlama with 1024 positions unless said otherwise."""
    options = {"model": "tinyllama", "hf_config": TINYLLAMA, "max_model_len": 1024, **options}
    parts = {
        part: made(**{name: options.pop(name) for name in list(options) if name in made.__dataclass_fields__})
        for part, made in _PARTS.items()
    }
    return VllmConfig(**parts, **options)
