"""Forms of quantised checkpoints: what a config says of how its weights are stored, and which of them are read.

Read are matrices of 8 bits with scales beside them (`scaled`), whoever wrote them: fp8, fbgemm_fp8, compressed-tensors
with 8-bit weights, ModelOpt's FP8. Others pack several weights into one integer or keep tables, under tensor names of
their own. What is refused is a form that is known and not read; of a method that nobody here knows the tensors decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm.checkpoint.files import read_json

READ = (
    "FP8 and int8 weights with scales by tensor, by row, by group or in blocks (fp8, compressed-tensors w8a8, ModelOpt "
    "FP8), plain weights, and GGUF files"
)
"""The forms that are read, for messages."""
INSTEAD = "Use the original model, an 8-bit form of it, or a GGUF file such as Q4_K_M"

_SECTIONS = ("quantization_config", "compression_config", "quantization")
"""Where configs keep the settings: Hugging Face's place, that of older compressed-tensors, and MLX's."""
_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that older writers left beside a config.json which says nothing."""
_PACKED = ".qweight"
_NAMES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "mlx": "MLX",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "quip": "QuIP#",
    "spqr": "SpQR",
    "vptq": "VPTQ",
    "higgs": "HIGGS",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2 (exl2)",
    "exl3": "ExLlamaV3 (exl3)",
    "bitnet": "BitNet",
    "fp_quant": "FP-Quant",
    "squeezellm": "SqueezeLLM",
    "marlin": "Marlin",
    "quanto": "quanto",
    "sinq": "SINQ",
}
"""Methods none of whose forms are read, and what to call them."""
_COMPRESSED_READ = ("float-quantized", "int-quantized", "naive-quantized", "dense")
_MODELOPT_READ = ("", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NO_QUANT")


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of its quantisation; empty where it says nothing."""
    found = (config.get(name) for name in _SECTIONS)
    return next((each for each in found if isinstance(each, Mapping) and each), {})


def quant_method(config: Mapping[str, Any]) -> str | None:
    """The method that a config names, in lower case; None where its weights are plain."""
    settings = settings_of(config)
    if not settings:
        return None
    if method := settings.get("quant_method"):
        return plain_method(str(method))
    marks = {"quant_algo": "modelopt", "config_groups": "compressed-tensors", "group_size": "mlx"}
    return next((method for mark, method in marks.items() if mark in settings), "a method that it does not name")


def plain_method(name: str) -> str:
    """A method under its own name: some options name the kernels that run it too."""
    return name.lower().removesuffix("_marlin")


def form_beside(path: Path, tensors: Iterable[str]) -> dict[str, Any]:
    """A `quantization_config` out of the files beside a config.json, for one that has none; {} where there is none.

    tensors: names; packed ones tell whether a file of an older writer is of these weights or was left over.
    """
    modelopt = read_json(path / "hf_quant_config.json").get("quantization")
    if isinstance(modelopt, dict):
        return {"quantization_config": {**modelopt, "quant_method": "modelopt"}}
    if any(name.endswith(_PACKED) for name in tensors):
        for name, method in _BESIDE.items():
            if settings := read_json(path / name):
                return {"quantization_config": {"quant_method": method, **settings}}
    return {}


def unsupported_form(config: Mapping[str, Any]) -> str | None:
    """What to call the form of a config's weights if it is known and not read; None for all others."""
    settings, method = settings_of(config), quant_method(config)
    if method is None:
        return None
    if method == "compressed-tensors":
        return _compressed(settings)
    if method.startswith("modelopt"):
        algorithm = str(settings.get("quant_algo") or "").upper()
        return None if algorithm in _MODELOPT_READ else f"ModelOpt {algorithm}"
    name = next((name for key, name in _NAMES.items() if method in (key, f"intel/{key}")), None)
    return None if name is None else _described(name, settings)


def _described(name: str, settings: Mapping[str, Any]) -> str:
    """The name with the width of its codes, as far as the config says it."""
    bits = settings.get("bits") or settings.get("w_bit") or _bits_of_flags(settings)
    group = settings.get("group_size") or settings.get("q_group_size")
    said = [f"{bits} bits"] if bits else []
    said += [f"groups of {group}"] if isinstance(group, int) and group > 0 else []
    return f"{name} ({', '.join(said)})" if said else name


def _bits_of_flags(settings: Mapping[str, Any]) -> str:
    """bitsandbytes' way of saying it."""
    if settings.get("load_in_8bit"):
        return "8"
    return f"{settings.get('bnb_4bit_quant_type') or ''} 4".strip() if settings.get("load_in_4bit") else ""


def _compressed(settings: Mapping[str, Any]) -> str | None:
    form = str(settings.get("format") or "dense")
    groups = settings.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    forms = {form, *(str(group["format"]) for group in groups if isinstance(group, Mapping) and group.get("format"))}
    for each in sorted(forms - {"mixed-precision"}):
        if each not in _COMPRESSED_READ:
            return f"compressed-tensors {each}{_widths(groups)}"
    sparsity = settings.get("sparsity_config")
    kind = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    if kind not in (None, "dense"):
        return f"compressed-tensors {kind}"
    if transforms := settings.get("transform_config"):
        kinds = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
        if kinds != {}:
            return "compressed-tensors with transforms of its weights (transform_config)"
    return None


def _widths(groups: Iterable[Any]) -> str:
    said = set()
    for group in groups:
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("num_bits"):
            size = weights.get("group_size")
            groups_of = f", groups of {size}" if isinstance(size, int) and size > 0 else ""
            said.add(f"{weights['num_bits']} bits{groups_of}")
    return f" ({'; '.join(sorted(said))})" if said else ""
