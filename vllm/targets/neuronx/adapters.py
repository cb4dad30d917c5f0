"""LoRA adapters in the library's terms.

Slots differ by version. Up to 0.6 slot 0 holds zeros and adapters follow from 1. In 0.7 and 0.8 adapters begin at slot
0, so that no request can do without one. From 0.9 `enable_base_model_only` asks for the slot of zeros.

From 0.7 on, an adapter is copied beside the KV line of a prompt when that is computed, and decodes take those copies
row by row, whatever ids they are given: rows must be in the order of lines, which over block KV they are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.neuron_config_sections import LoraServingConfig
from vllm.targets.neuronx.versions import Version

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

_MANAGED = Version(0, 7)
"""First version with a manager of adapters: slots from 0, rows compiled in, swapping."""
_BASE_SLOT = Version(0, 9)
_SWAPPING = (Version(0, 7), Version(0, 8))
_SINCE = {
    **dict.fromkeys(
        (
            "batch_size",
            "max_cpu_loras",
            "lora_ckpt_paths_cpu",
            "dynamic_multi_lora",
            "eviction_policy",
            "lfu_decay_period",
            "base_model_quantized",
            "is_context_encoding",
        ),
        _MANAGED,
    ),
    "enable_base_model_only": _BASE_SLOT,
}


def base_slot(lora: LoraServingConfig | None, version: Version) -> int | None:
    """Slot of a request without an adapter, -1 where there is none; adapters 1, 2, ... follow. None: no adapters."""
    if lora is None:
        return None
    if version < _MANAGED or (version >= _BASE_SLOT and lora.enable_base_model_only):
        return 0
    return -1


def library_entries(lora: LoraServingConfig, version: Version) -> dict[str, Any]:
    """Keyword arguments of the library's LoraServingConfig: it takes no other than its own."""
    entries = {name: value for name, value in lora.to_dict().items() if version >= _SINCE.get(name, version)}
    entries.pop("lora_ckpt_json")
    entries.pop("is_context_encoding", None)
    if version < _MANAGED:
        entries["max_loras_on_cpu"] = lora.max_cpu_loras
    return entries


def num_slots(neuron: NeuronConfig, version: Version) -> int:
    """Copies of adapter weights that a core holds: one per adapter, one of zeros, and from 0.7 one per row."""
    if neuron.lora_config is None:
        return 0
    return neuron.lora_config.max_loras + 1 + (neuron.batch_size if version >= _MANAGED else 0)


def check_adapters(neuron: NeuronConfig, architectures: list[str], faults: Faults) -> None:
    """What needs no version: files, ranks, and what cannot be combined."""
    lora = neuron.lora_config
    if lora is None:
        return
    if not any(name in ARCHITECTURES for name in architectures):
        why = f"the library has LoRA adapters for {', '.join(ARCHITECTURES)}"
        faults.add("enable_lora", True, why, "Leave it out, or merge the adapter into the model")
    if neuron.is_block_kv_layout:
        why = "adapters lie beside KV lines, and over block KV rows are in no order of lines"
        faults.add("enable_lora", True, why, "Use --no-enable-prefix-caching --no-enable-chunked-prefill")
    if neuron.enable_fused_speculation:
        faults.add("enable_lora", True, "adapters do not reach fused speculation", "Leave one of the two out")
    for name, path in (lora.lora_ckpt_paths_cpu or lora.lora_ckpt_paths or {}).items():  # type: ignore[union-attr]
        _check_files(name, Path(path).expanduser(), lora.max_lora_rank, faults)


def check_version(lora: LoraServingConfig | None, version: Version, faults: Faults) -> None:
    if lora is None or not lora.dynamic_multi_lora or version in _SWAPPING:
        return
    why = f"NxD Inference {version} cannot swap adapters: " + (
        "it came with 0.7" if version < _MANAGED else "0.9.0 fails on it while loading (NameError)"
    )
    faults.add("lora_config.dynamic_multi_lora", True, why, "Leave it out: all adapters then stay on the device")


def _check_files(name: str, path: Path, max_rank: int, faults: Faults) -> None:
    if name == "0":
        faults.add("lora_modules", name, "the library calls the model without adapter so", "Use another name")
    if not any(path.glob("*.safetensors")) or not (path / "adapter_config.json").is_file():
        why = f"{path} holds no adapter_config.json with a safetensors file; pickled ones are not opened"
        faults.add("lora_modules", name, why, "Save the adapter with PEFT, safe_serialization=True")
        return
    try:
        rank = int(json.loads((path / "adapter_config.json").read_text())["r"])
    except (ValueError, KeyError, TypeError) as error:
        faults.add("lora_modules", name, f"{path}/adapter_config.json cannot be read: {error!r}", "Save it with PEFT")
        return
    if rank > max_rank:
        why = f"max_lora_rank={max_rank}, and the rank of {name} is {rank}"
        faults.add("max_lora_rank", max_rank, why, f"Use {rank} or more")
