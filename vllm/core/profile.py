"""`TargetProfile`: what a device target can do, known before anything is loaded.

One record per target, written in the target's own folder. The resolver, the checks and `vllm neuron plan` read it, so
that no generic code asks which target it is. `Capabilities` in `contract` says the same of a model that is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BlockRule:
    """Lengths of KV blocks, in tokens. A block as long as a sequence (contiguous KV) is always allowed."""

    multiple: int = 1
    """Block sizes are multiples of this."""
    default: int = 32
    """Block size where none is asked for."""


@dataclass(frozen=True, slots=True)
class KeyRule:
    """Values of one key of the Neuron config that a target does not serve, and the reason."""

    key: str
    """Name of the key; "section.key" for one inside a section."""
    why: str
    """Why other values are refused, as a user reads it."""
    fix: str = "Leave it out"
    """What works instead."""
    accepts: tuple[Any, ...] = ()
    """Values that are served. Empty: only false, absent or empty ones."""

    def refuses(self, value: Any) -> bool:
        return value not in self.accepts if self.accepts else bool(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetProfile:
    """What a target can do with any model, and how it wants its input."""

    name: str

    dtypes: tuple[str, ...]
    """Arithmetic types, by PyTorch's names."""
    kv_dtypes: tuple[str, ...]
    """Values of `kv_cache_dtype` that are served ("fp8_e4m3" counts as "fp8")."""
    quantizations: tuple[str, ...] | None = None
    """Forms of quantised weights that there are kernels for, as `ProgramConfig.quantization` names them. None: all."""
    quantizes: bool = False
    """Quantises the model's own checkpoint, so that a checkpoint quantised beforehand is not read."""

    blocks: BlockRule = field(default_factory=BlockRule)
    block_kv_by_default: bool = False
    """Caches prefixes and mixes pieces of prompts with decodes unless told not to."""
    offload_refusal: str = ""
    """Why KV blocks cannot be copied to and from the host; empty where they can."""

    ragged_rows: bool = True
    """Rows of a step may have any lengths side by side. False: a step is a rectangle of one row per sequence, or for
    pieces of prompts one row that is at most a sequence long."""
    default_step_tokens: int = 256
    """Tokens of a mixed step where `max_num_batched_tokens` is not given."""

    speculation_methods: tuple[str, ...] = ()
    """Ways to draft, as `speculative_config` names them."""
    adaptive_speculation: bool = True
    """The number of drafts may differ from step to step. False: programs are compiled for one number."""
    lora: bool = False
    """Serves LoRA adapters."""

    splits_model: bool = False
    """Divides the model over `tensor_parallel_size` cores. False: any degree runs unsplit."""
    own_memory: bool = False
    """Weights and KV cache lie in memory of the cores. False: in the host's."""
    heeds_accelerator_keys: bool = False
    """Keys of the Neuron config that shape the accelerator's programs have their effect."""

    key_rules: tuple[KeyRule, ...] = ()
    """Keys of the Neuron config that are not served."""
    idle_keys: dict[str, str] = field(default_factory=dict)
    """Keys of the Neuron config that change nothing of what comes out and are left out, by the reason."""
