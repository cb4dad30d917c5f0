"""Fused speculation in the library's terms: draft and target are one program, which returns one token or several a row.

A step runs the draft for `speculation_length` tokens (T) and checks them in one pass of the target, whatever a row may
use of them: there is no other decode program, and no choice of T. So the cache is compiled T positions longer than a
sequence, and a row at its last position can still run. Up to T tokens come out, as many as the device moved the row's
position on; what a row may not use is dropped, and computed again in the next step.

The library compares greedily, whatever temperature a request brings: requests that sample are refused (see
`Capabilities.greedy_only`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.settings.faults import Faults
from vllm.settings.kv_layout import cached_positions
from vllm.settings.neuron_config import NeuronConfig
from vllm.targets.neuronx.library import Library
from vllm.targets.neuronx.registry import application_class, known_architecture
from vllm.targets.neuronx.versions import Version

DRAFT_CLASS_SINCE = Version(0, 7)
"""First version in which a draft may be of another class than its target."""


def cache_length(neuron: NeuronConfig) -> int:
    """Positions of a row's compiled KV cache."""
    return cached_positions(neuron.max_length, neuron.speculation_length if neuron.enable_fused_speculation else 0)


def speculation_entries(config: VllmConfig) -> dict[str, Any]:
    """Entries of the target's NeuronConfig that differ."""
    neuron: NeuronConfig = config.neuron_config
    if not neuron.enable_fused_speculation:
        return {}
    length = cache_length(neuron)
    entries: dict[str, Any] = {"seq_len": length, "max_length": length}
    if neuron.enable_bucketing:
        entries["token_generation_buckets"] = [*neuron.token_buckets[:-1], length]
    return entries


def draft_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's NeuronConfig: the target's, without what makes it a target (see `as_draft` for the rest)."""
    is_eagle = bool(entries.get("enable_eagle_speculation"))
    own = {**entries, "enable_fused_speculation": is_eagle, "sequence_parallel_enabled": False, "quantized": False}
    for name in ("quantized_checkpoints_path", "modules_to_not_convert", "draft_model_modules_to_not_convert"):
        own.pop(name, None)
    if entries.get("draft_model_modules_to_not_convert"):
        own["modules_to_not_convert"] = entries["draft_model_modules_to_not_convert"]
    own.update({"is_eagle_draft": True} if is_eagle else {"speculation_length": 0})
    return own


def as_draft(neuron_config: Any) -> Any:
    """The library's object for a draft. It takes no EAGLE for an unfused one, so that this is set afterwards."""
    neuron_config.enable_fused_speculation = False
    return neuron_config


def fused_spec_config(
    config: VllmConfig, library: Library, target: Any, build: Callable[[Any, Mapping[str, Any], str], Any]
) -> Any:
    """The library's FusedSpecNeuronConfig; None without fused speculation.

    build: makes the draft's InferenceConfig out of an application class, the model's config and its path.
    """
    speculation = config.speculative_config
    if not config.neuron_config.enable_fused_speculation or speculation is None:
        return None
    draft = target
    if not config.neuron_config.enable_eagle_speculation:
        draft = application_class(speculation.hf_config, library.model_types)
    path = speculation.model_path or speculation.model
    keywords = {"draft_config": build(draft, speculation.hf_config, path), "draft_model_path": path}
    if draft is not target:
        keywords["draft_model_cls"] = draft
    return library.config.FusedSpecNeuronConfig(target._model_cls, **keywords)


def check_speculation(config: VllmConfig, neuron: NeuronConfig, faults: Faults) -> None:
    """What cannot be combined, and what the draft's checkpoint must hold."""
    speculation, name = config.speculative_config, "speculative_config"
    if speculation is None or not speculation.uses_model:
        return
    if neuron.is_block_kv_layout:
        why = "fused speculation runs over contiguous KV: drafts beyond a row's blocks would have no place"
        faults.add(name, speculation.method, why, "Use --no-enable-prefix-caching --no-enable-chunked-prefill")
    if not neuron.on_device_sampling:
        why = "drafts are compared on the device, which must sample there"
        faults.add(name, speculation.method, why, "Leave out what turns on-device sampling off")
    if neuron.speculation_length in neuron.context_buckets:
        why = f"the library takes a prompt bucket of speculation_length={neuron.speculation_length} for a decode"
        faults.add("context_encoding_buckets", neuron.context_buckets, why, "Use longer buckets")
    if speculation.method in ("eagle", "eagle3"):
        _check_eagle_files(Path(speculation.model_path or speculation.model), speculation.method, faults)


def check_speculation_version(config: VllmConfig, version: Version, faults: Faults) -> None:
    speculation = config.speculative_config
    if speculation is None or speculation.method != "draft_model" or version >= DRAFT_CLASS_SINCE:
        return
    draft, target = known_architecture(speculation.hf_config), known_architecture(config.model_config.hf_config)
    if draft != target:
        why = f"the draft is a {draft}, its target a {target}, which NxD Inference {version} cannot join"
        faults.add("speculative_config", speculation.model, why, f"Use a {target}, or version {DRAFT_CLASS_SINCE}")


def _check_eagle_files(path: Path, method: str, faults: Faults) -> None:
    """An EAGLE head begins with a projection that no other model has. It is published without the layers it shares with
    its target; the library wants those of EAGLE's first version beside it."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names.update(str(name).removeprefix("model.") for name in tensors.keys())  # noqa: SIM118
    if "fc.weight" not in names:
        why = f"{path} is not an EAGLE draft: it has no tensor 'fc.weight'"
        fix = "Leave method out: a whole model drafts as it is"
        faults.add("speculative_config", {"method": method}, why, fix)
    elif method == "eagle" and (missing := sorted({"lm_head.weight", "embed_tokens.weight"} - names)):
        why = f"the EAGLE checkpoint {path} lacks {', '.join(missing)}, which it shares with its target"
        faults.add("speculative_config", str(path), why, "Copy them from the target's checkpoint into its file")
