"""What a model brings along onto the cores: its draft, and LoRA adapters.

The draft of fused speculation is a model of its own, split over the same cores, with a KV cache for as many rows and
positions as its target's. An EAGLE head is one layer with a projection of 2 or 3 hidden states in front.

Adapters have, for every module that they change, A [rank, inputs] and B [outputs, rank] in the model's dtype; that side
of the pair is split which the module itself is split along. The target says how many copies a core holds. Ranks and
modules are read from the adapters' own configs where these can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm.config import LoRAConfig, SpeculativeConfig
from vllm.plan.memory import CoreMemory
from vllm.plan.weights import (
    Sharding,
    Weight,
    bytes_per_core,
    missing_entries,
    part_of,
    weights_of_config,
)
from vllm.settings.parallel import HeadSharding
from vllm.sizes import DTYPE_BYTES

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SPLIT_INPUTS = ("o_proj", "down_proj")
_INPUTS_OF_EAGLE = {"eagle": 2, "eagle3": 3}


def draft_memory(speculation: SpeculativeConfig | None, neuron_config: Any, kv_value_bytes: int) -> CoreMemory | None:
    """The draft's part of a core; None without one, or where its config does not say enough."""
    if speculation is None or not speculation.uses_model or missing_entries(speculation.hf_config):
        return None
    hf_config = speculation.hf_config
    heads = HeadSharding.from_hf_config(neuron_config.tp_degree, hf_config)
    if heads is None:
        return None
    weights = weights_of_config(hf_config)
    if inputs := _INPUTS_OF_EAGLE.get(speculation.method):
        hidden = int(hf_config["hidden_size"])
        weights.append(Weight("fc.weight", (hidden, inputs * hidden)))
    held = bytes_per_core(weights, Sharding.of(heads, neuron_config, hf_config), neuron_config, hf_config)
    return CoreMemory(hf_config, heads, neuron_config, held, kv_value_bytes)


def adapter_bytes(
    lora: LoRAConfig, weights: Iterable[Weight], sharding: Sharding, neuron_config: Any, slots: int
) -> int:
    """Bytes of all adapters of a core. slots: copies that it holds."""
    if neuron_config.lora_config is None:
        return 0
    modules, rank = _asked(lora, neuron_config.lora_config)
    changed = [weight for weight in weights if _module(weight.name) in modules and len(weight.shape) == 2]
    one = sum(_pair(weight, part_of(weight, sharding), rank) for weight in changed)
    return int(slots * one * DTYPE_BYTES[neuron_config.torch_dtype])


def _pair(whole: Weight, part: Weight, rank: int) -> int:
    """Values of A and B of one module in one slot. Shapes of weights are [outputs, inputs]."""
    outputs, inputs = part.shape[0], whole.shape[1]
    if _module(whole.name) in _SPLIT_INPUTS:
        outputs, inputs = whole.shape[0], part.shape[1]
    return whole.count * rank * (outputs + inputs)


def _module(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _asked(lora: LoRAConfig, section: Any) -> tuple[set[str], int]:
    """Modules and rank that are compiled for: of the section, widened by the adapters' own configs."""
    modules, rank = set(section.target_modules or ()), section.max_lora_rank
    for path in lora.adapters.values():
        config = _adapter_config(Path(path).expanduser())
        named = config.get("target_modules")
        modules |= set(named) if isinstance(named, list) else set(MODULES)
        rank = max(rank, int(config.get("r") or 0))
    return modules or set(MODULES), rank


def _adapter_config(directory: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((directory / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
