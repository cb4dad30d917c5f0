"""Which LoRA adapters a configuration serves, from whatever part of it the user named.

In vLLM's terms (`enable_lora`, `lora_modules`, `max_loras`, `max_lora_rank`, `max_cpu_loras`) or in NxD Inference's
(`lora_config` with `lora_ckpt_paths`). Adapters are fixed at start, and numbered from 1 in the order given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.config import LoRAConfig, VllmConfig
from vllm.settings.faults import Faults

JSON_KEYS = ("lora_ckpt_json", "lora_ckpt_paths_cpu")
"""Keys of `lora_config` that name adapters and are read here: the library is told them as `lora_ckpt_paths`."""


def settle_lora(config: VllmConfig, override: Mapping[str, Any], why_not: str, faults: Faults) -> LoRAConfig:
    """The adapters under one spelling, `{"name", "path"}` each. Of files only a `lora_ckpt_json` is read.

    why_not: why the target serves no adapters; "" if it does.
    """
    lora, section = config.lora_config, override.get("lora_config")
    modules = _modules(lora.lora_modules, "lora_modules", faults)
    given = _modules(_paths(section, "lora_ckpt_paths"), "lora_config.lora_ckpt_paths", faults)
    if modules and given and modules != given:
        faults.add("lora_config.lora_ckpt_paths", given, "lora_modules names other adapters", "Give one of the two")
    modules = modules or given
    on_host = _modules(_paths(section, "lora_ckpt_paths_cpu"), "lora_config.lora_ckpt_paths_cpu", faults)
    for source, further in (("lora_ckpt_json", _of_json(section, faults)), ("lora_ckpt_paths_cpu", on_host)):
        elsewhere = {name: path for name, path in further.items() if modules.get(name, path) != path}
        if elsewhere:
            why = "adapters of these names were said to lie elsewhere"
            faults.add(f"lora_config.{source}", elsewhere, why, "Give each path once")
        modules = {**further, **modules} if elsewhere else {**modules, **further}
    asked = lora.enable_lora or bool(lora.lora_modules) or section is not None
    if asked and why_not:
        faults.add("enable_lora", True, why_not, "Leave it out, or merge the adapter into the model")
    elif asked and not modules:
        why, fix = "no adapter is named", "Use lora_modules, for example my-adapter=/path"
        faults.add("enable_lora", True, why, fix, involves=["lora_modules", "lora_config.lora_ckpt_json"])
    return replace(lora, enable_lora=asked, lora_modules=[{"name": name, "path": modules[name]} for name in modules])


def without_names(override: Mapping[str, Any]) -> dict[str, Any]:
    """The override without what `settle_lora` has read, so that resolving again reads no file."""
    section = override.get("lora_config")
    if not isinstance(section, Mapping):
        return dict(override)
    return {**override, "lora_config": {name: value for name, value in section.items() if name not in JSON_KEYS}}


def _of_json(section: Any, faults: Faults) -> dict[str, str]:
    """Path by name of the adapters in a `lora_ckpt_json`, those for the device first."""
    file = section.get("lora_ckpt_json") if isinstance(section, Mapping) else None
    if not file:
        return {}
    try:
        content = json.loads(Path(file).expanduser().read_text())
        directory = Path(content.get("lora-ckpt-dir", ".")).expanduser()
        found = {**content["lora-ckpt-paths"], **(content.get("lora-ckpt-paths-cpu") or {})}
        return {str(name): str(directory / Path(path).expanduser()) for name, path in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it cannot be read ({error if isinstance(error, OSError) else 'it has no mapping lora-ckpt-paths'})"
        fix = "Mend the file, or use lora_modules, for example my-adapter=/path"
        faults.unreadable("lora_config.lora_ckpt_json", file, why, fix)
        return {}


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
    merged = {
        **entries,
        **{name: value for name, value in override.items() if name not in ("lora_ckpt_paths", *JSON_KEYS)},
    }
    if merged.get("dynamic_multi_lora"):
        adapters = entries["lora_ckpt_paths"]
        resident = override.get("max_loras", max_loras)
        merged["max_loras"] = resident
        merged["lora_ckpt_paths_cpu"] = dict(adapters)
        merged["lora_ckpt_paths"] = dict(list(adapters.items())[:resident])
    return merged


def _paths(section: Any, key: str) -> list[Any]:
    """`lora_ckpt_paths` of a section, or those for the host, in either of their forms, as modules."""
    paths = section.get(key) if isinstance(section, Mapping) else None
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
            modules[name] = str(Path(path).expanduser())
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
