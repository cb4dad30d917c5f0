"""What is to be planned: a config.json alone, a checkpoint directory, or a GGUF file. Only headers are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.checkpoint import Checkpoint, CheckpointError, hub, normalise_config, open_checkpoint
from vllm.checkpoint.checkpoint import read_json
from vllm.checkpoint.safetensors_file import read_safetensors
from vllm.neuron.fingerprint import weight_files


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on paper.

    path: the directory or the file. config: in normal form, flat. shapes: of the tensors that headers name; empty where
    there are no weights. checkpoint_bytes: of those tensors as stored; 0 where there are none.
    """

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    checkpoint_bytes: int = 0

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @property
    def origin(self) -> str:
        if not self.shapes:
            return "config.json"
        return "GGUF header" if self.is_gguf else "safetensors headers"

    def as_checkpoint(self) -> Checkpoint:
        """What the engine's own arguments are completed from. It has no tensors."""
        return Checkpoint(self.path, self.config)


def read_source(
    model: str,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    load_format: str = "auto",
) -> ModelSource:
    """The model that `model` names; of a hub id only config.json is fetched. Raises CheckpointError."""
    path = hub.local_path(model, patterns=hub.METADATA, revision=revision, download_dir=download_dir, token=token)
    if path.is_file() and path.suffix == ".json":
        return ModelSource(path.parent, _config_of(path))
    files = weight_files(path, load_format)
    if path.is_file() or (files and files[0].suffix == ".gguf"):
        return _gguf(path if path.is_file() else files[0])
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, which says how large the model is")
    return _with_headers(path, _config_of(path / "config.json"), files)


def _config_of(file: Path) -> dict[str, Any]:
    return normalise_config(read_json(file))


def _with_headers(path: Path, config: dict[str, Any], files: list[Path]) -> ModelSource:
    shapes: dict[str, tuple[int, ...]] = {}
    size = 0
    for file in files:
        for name, tensor in read_safetensors(file).items():
            shapes[name] = tensor.shape
            size += tensor.data.nbytes
    return ModelSource(path, config, shapes, size)


def _gguf(path: Path) -> ModelSource:
    checkpoint = open_checkpoint(path)
    shapes = {name: checkpoint.get(name).shape for name in checkpoint.tensors()}
    return ModelSource(path, checkpoint.config, shapes, path.stat().st_size)
