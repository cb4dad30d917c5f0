"""Which of the library's models runs a checkpoint's architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.settings.faults import Faults, nearest
from vllm.targets.neuronx.versions import MODELS_SINCE, NEWEST, Version

TASK = "causal-lm"

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": ("llama",),
    "MistralForCausalLM": ("mistral", "llama"),
    "MixtralForCausalLM": ("mixtral",),
    "DbrxForCausalLM": ("dbrx",),
    "Qwen2ForCausalLM": ("qwen2",),
    "Qwen3ForCausalLM": ("qwen3",),
    "Qwen3MoeForCausalLM": ("qwen3_moe",),
    "GptOssForCausalLM": ("gpt_oss",),
    "Llama4ForConditionalGeneration": ("llama4",),
}
"""Names in the library's registry, the best first. A Mistral without its window is a Llama."""

SERVED_SINCE: dict[str, tuple[Version, str]] = {
    "llama4": (Version(0, 6), "earlier ones pad images to another length than prompts"),
}
"""Models whose first versions in the library cannot be served, and why."""

MISCOMPUTED: dict[str, tuple[str, str]] = {
    "Gemma3ForCausalLM": (
        "gemma3",
        "it rotates the layers of full attention as those of the window, and takes every vocabulary for 262208 words",
    ),
}
"""Models that no version computes rightly: the name in the library's registry, and what goes wrong."""

UNSERVED_IMAGE_TO_TEXT: dict[str, tuple[str, str]] = {
    "MllamaForConditionalGeneration": ("mllama", "LlamaForCausalLM"),
    "LlavaForConditionalGeneration": ("pixtral", "MistralForCausalLM"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen2ForCausalLM"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen3ForCausalLM"),
    "Gemma3ForConditionalGeneration": ("gemma3", ""),
}
"""By architecture: the name in the library's registry, and the nearest model of text alone that is served, if any."""


def known_architecture(hf_config: Mapping[str, Any]) -> str | None:
    """The first of a checkpoint's architectures that the library has a model for."""
    return next((name for name in hf_config.get("architectures") or [] if name in ARCHITECTURES), None)


def first_version(hf_config: Mapping[str, Any]) -> tuple[str, Version] | None:
    """The library's name of the model family and the first version that has it, whether or not it is served here."""
    unserved = {**UNSERVED_IMAGE_TO_TEXT, **MISCOMPUTED}
    known = {**ARCHITECTURES, **{name: (key,) for name, (key, _) in unserved.items()}}
    for name in hf_config.get("architectures") or []:
        found = [(key, MODELS_SINCE[key]) for key in known.get(name, ()) if key in MODELS_SINCE]
        if found:
            return min(found, key=lambda each: each[1])
    return None


def check_architecture(hf_config: Mapping[str, Any], version: Version, faults: Faults) -> None:
    """Whether this version has a model for a checkpoint that can be served."""
    given = list(hf_config.get("architectures") or [])
    shown = given[0] if len(given) == 1 else given
    architecture = known_architecture(hf_config)
    if architecture is None and (images := [name for name in given if name in UNSERVED_IMAGE_TO_TEXT]):
        why = f"{images[0]} is an image-to-text model; of these only Llama 4 is served yet"
        text = UNSERVED_IMAGE_TO_TEXT[images[0]][1]
        fix = "Use Llama4ForConditionalGeneration" + (f", or for text alone {text}" if text else "")
        faults.add("architectures", shown, why, fix)
        return
    if architecture is None and (wrong := [name for name in given if name in MISCOMPUTED]):
        why = f"NxD Inference computes it wrongly: {MISCOMPUTED[wrong[0]][1]}"
        faults.add("architectures", shown, why, f"No version up to {NEWEST} computes it rightly")
        return
    if architecture is None:
        hint = nearest(str(given[0]) if given else "", ARCHITECTURES)
        faults.add("architectures", shown, "NxD Inference has no model for it", hint)
        return
    since = min(MODELS_SINCE[name] for name in ARCHITECTURES[architecture] if name in MODELS_SINCE)
    if version < since:
        faults.add("architectures", shown, f"NxD Inference has it from {since}, and {version} is installed")
    served, why = SERVED_SINCE.get(ARCHITECTURES[architecture][0], (since, ""))
    if since <= version < served:
        faults.add("architectures", shown, f"served from NxD Inference {served} on, not {version}: {why}")


def application_class(hf_config: Mapping[str, Any], model_types: Mapping[str, Mapping[str, Any]]) -> Any:
    """The application class from the library's MODEL_TYPES. Raises ValueError where it has none."""
    architecture = known_architecture(hf_config)
    for name in ARCHITECTURES.get(architecture or "", ()):
        if TASK in model_types.get(name, {}):
            return model_types[name][TASK]
    given = ", ".join(hf_config.get("architectures") or ["nothing"])
    raise ValueError(f"the installed NxD Inference has no model for {given}; it has {', '.join(sorted(model_types))}")
