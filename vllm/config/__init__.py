"""Settings of a run. The names that vLLM has under `vllm.config` are importable from here."""

from vllm.config.config import (
    SPECULATIVE_METHODS,
    CacheConfig,
    LoRAConfig,
    ModelConfig,
    NeuronOptions,
    ObservabilityConfig,
    ParallelConfig,
    ProgramConfig,
    SchedulerConfig,
    SpeculativeConfig,
    SpeculativeOptions,
    VllmConfig,
    option,
)

__all__ = [
    "SPECULATIVE_METHODS",
    "CacheConfig",
    "LoRAConfig",
    "ModelConfig",
    "NeuronOptions",
    "ObservabilityConfig",
    "ParallelConfig",
    "ProgramConfig",
    "SchedulerConfig",
    "SpeculativeConfig",
    "SpeculativeOptions",
    "VllmConfig",
    "option",
]
