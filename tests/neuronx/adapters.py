"""LoRA adapters in PEFT's form, and the checkpoints that they amount to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_adapter(directory: Path, model: Path, seed: int, rank: int = 4, alpha: int = 8) -> Path:
    """A random adapter of two layers of `model`, strong enough to change its tokens."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if any(name.endswith(f"{module}.weight") for module in MODULES):
            out_size, in_size = weight.shape
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, in_size, generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out_size, rank, generator=generator) * 0.2
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"r": rank, "lora_alpha": alpha, "target_modules": [module.split(".")[1] for module in MODULES]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def merged(directory: Path, model: Path, adapter: Path) -> Path:
    """The checkpoint with the adapter in its weights."""
    shutil.copytree(model, directory)
    weights, tensors = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in weights:
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in tensors:
            product = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
            weights[name] = (weights[name].float() + config["lora_alpha"] / config["r"] * product).to(
                weights[name].dtype
            )
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
