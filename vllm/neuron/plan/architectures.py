"""Who can run a model: which version of NxD Inference has it, whether the `cpu` target does, and what it excludes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm.neuron.cpu.models import supported_architectures
from vllm.neuron.faults import Faults
from vllm.neuron.neuronx import registry
from vllm.neuron.neuronx.versions import MODELS_SINCE, NEWEST, OLDEST, Version, parse_version

SDK = {
    Version(0, 4): "2.24",
    Version(0, 5): "2.25",
    Version(0, 6): "2.26",
    Version(0, 7): "2.27",
    Version(0, 8): "2.28",
    Version(0, 9): "2.29",
}
"""Release of the Neuron SDK that carries a version of NxD Inference."""


class Support(NamedTuple):
    """key: the library's name of the model family. since: the first version that has it."""

    key: str
    since: Version


def read_version(text: str) -> Version:
    """A version to plan for. Raises ValueError for one that is not driven."""
    version = parse_version(text)
    if version not in SDK:
        raise ValueError(f"NxD Inference {text} is not known; known: {OLDEST} to {NEWEST}")
    return version


def support_of(hf_config: Mapping[str, Any]) -> Support | None:
    """Where NxD Inference has the model, whether or not it is served here; None where no version does."""
    known = {**registry.ARCHITECTURES, **{name: (key,) for name, (key, _) in registry.UNSERVED_IMAGE_TO_TEXT.items()}}
    for name in hf_config.get("architectures") or []:
        found = [Support(key, MODELS_SINCE[key]) for key in known.get(name, ()) if key in MODELS_SINCE]
        if found:
            return min(found, key=lambda support: support.since)
    return None


def runs_on_cpu(hf_config: Mapping[str, Any]) -> bool:
    return any(name in supported_architectures() for name in hf_config.get("architectures") or [])


def check_architecture(
    hf_config: Mapping[str, Any], target: str, version: Version, max_model_len: int, faults: Faults
) -> None:
    """Whether `target` can run the model at all."""
    if target == "neuronx":
        registry.check_architecture(hf_config, version, max_model_len, faults)
    elif target == "cpu" and not runs_on_cpu(hf_config):
        given = (hf_config.get("architectures") or ["(none)"])[0]
        known = supported_architectures()
        faults.add("architectures", given, "the cpu target does not run it", f"Known: {', '.join(known)}")
