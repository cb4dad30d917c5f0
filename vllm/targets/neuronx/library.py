"""The one place that imports NxD Inference."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vllm.targets.neuronx.versions import PACKAGE, Version, installed, parse_version

ROOT = "neuronx_distributed_inference"


@dataclass(frozen=True, slots=True)
class Library:
    """The parts of NxD Inference that are driven."""

    version: Version
    config: ModuleType
    model_types: dict[str, dict[str, Any]]
    load_pretrained_config: Any


def is_imported() -> bool:
    """Whether the runtime's packages are in this process already: what they read of the environment, they have read."""
    return "torch_neuronx" in sys.modules or ROOT in sys.modules


def load_library() -> Library:
    """Import the library. Raises RuntimeError that says what is missing or does not fit together."""
    try:
        config = importlib.import_module(f"{ROOT}.models.config")
        constants = importlib.import_module(f"{ROOT}.utils.constants")
        adapter = importlib.import_module(f"{ROOT}.utils.hf_adapter")
    except ImportError as error:
        found = ", ".join(
            f"{name} {installed(name) or 'missing'}" for name in (PACKAGE, "torch-neuronx", "transformers")
        )
        raise RuntimeError(
            f"NxD Inference cannot be imported: {error}. Installed: {found}. It needs transformers 4; see "
            "requirements-neuron.txt for versions that go together"
        ) from error
    version = parse_version(installed())
    return Library(version, config, constants.MODEL_TYPES, adapter.load_pretrained_config)
