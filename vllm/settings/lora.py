"""Which LoRA adapters a configuration serves, from whatever part of it the user named.

In vLLM's terms (`enable_lora`, `lora_modules`, `max_loras`, `max_lora_rank`, `max_cpu_loras`) or in NxD Inference's
(`lora_config` with `lora_ckpt_paths`). Adapters are fixed at start, and numbered from 1 in the order given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.config import LoRAConfig, VllmConfig
from vllm.settings.faults import Faults


def settle_lora(config: VllmConfig, override: Mapping[str, Any], why_not: str, faults: Faults) -> LoRAConfig:
    """The adapters under one spelling, `{"name", "path"}` each. Nothing is read from disk.

    why_not: why the target serves no adapters; "" if it does.
    """
    lora, section = config.lora_config, override.get("lora_config")
    modules = _modules(lora.lora_modules, "lora_modules", faults)
    given = _modules(_paths(section), "lora_config.lora_ckpt_paths", faults)
    if modules and given and modules != given:
        faults.add("lora_config.lora_ckpt_paths", given, "lora_modules names other adapters", "Give one of the two")
    modules = modules or given
    for name in ("lora_ckpt_json", "lora_ckpt_paths_cpu"):
        if isinstance(section, Mapping) and section.get(name):
            faults.add(f"lora_config.{name}", section[name], "adapters are named in one place", "Use lora_modules")
    asked = lora.enable_lora or bool(lora.lora_modules) or section is not None
    if asked and why_not:
        faults.add("enable_lora", True, why_not, "Leave it out, or merge the adapter into the model")
    elif asked and not modules:
        faults.add("enable_lora", True, "no adapter is named", "Use lora_modules, for example my-adapter=/path")
    return replace(lora, enable_lora=asked, lora_modules=[{"name": name, "path": modules[name]} for name in modules])


def lora_entries(config: VllmConfig) -> dict[str, Any] | None:
    """What vLLM's settings give of the Neuron config's `lora_config`; None without adapters.

    All adapters stay on the device, unless `dynamic_multi_lora` says to swap them (see `with_swapping`).
    """
    lora = config.lora_config
    if not lora.enable_lora:
        return None
    return {
        "max_loras": max(lora.max_loras, len(lora.adapters)),
        "max_lora_rank": lora.max_lora_rank,
        "max_cpu_loras": max(lora.max_cpu_loras or 0, len(lora.adapters), lora.max_loras),
        "batch_size": config.scheduler_config.max_num_seqs,
        "lora_ckpt_paths": lora.adapters,
        "enable_base_model_only": True,
    }


def with_swapping(entries: Mapping[str, Any], override: Mapping[str, Any], max_loras: int) -> dict[str, Any]:
    """`entries` under the user's `override`. With swapping only the first `max_loras` adapters start on the device."""
    merged = {**entries, **{name: value for name, value in override.items() if name != "lora_ckpt_paths"}}
    if merged.get("dynamic_multi_lora"):
        adapters = entries["lora_ckpt_paths"]
        resident = override.get("max_loras", max_loras)
        merged["max_loras"] = resident
        merged["lora_ckpt_paths_cpu"] = dict(adapters)
        merged["lora_ckpt_paths"] = dict(list(adapters.items())[:resident])
    return merged


def _paths(section: Any) -> list[Any]:
    """`lora_ckpt_paths` of a section, in either of its forms, as modules."""
    paths = section.get("lora_ckpt_paths") if isinstance(section, Mapping) else None
    if isinstance(paths, Mapping):
        return [{"name": name, "path": path} for name, path in paths.items()]
    return [str(each).replace(":", "=", 1) for each in paths or []]


def _modules(given: Any, option: str, faults: Faults) -> dict[str, str]:
    """Path by name."""
    modules: dict[str, str] = {}
    for each in given:
        name, path = _name_and_path(each)
        if not name or not path:
            faults.unreadable(option, each, "an adapter has a name and a path", 'Use NAME=PATH, or {"name", "path"}')
        elif name in modules:
            faults.unreadable(option, each, f"{name!r} is named twice", "Give each adapter a name of its own")
        else:
            modules[name] = path
    return modules


def _name_and_path(given: Any) -> tuple[str, str]:
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError:
            return "", ""
    if isinstance(given, Mapping):
        known = set(given) == {"name", "path"}
        return (str(given["name"]), str(given["path"])) if known else ("", "")
    name, _, path = str(given).partition("=")
    return name.strip(), path.strip()
