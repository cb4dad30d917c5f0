"""What is to be planned: a config.json alone, a checkpoint directory, or a GGUF file. Only headers are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.checkpoint import Checkpoint, CheckpointError, hub, open_checkpoint
from vllm.checkpoint.config import read_config
from vllm.checkpoint.files import find_weights
from vllm.checkpoint.kind import is_gguf, what_directory_instead
from vllm.checkpoint.safetensors_file import read_shards


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
        return is_gguf(self.path)

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
        return ModelSource(path.parent, read_config(path))
    found = find_weights(path, load_format)
    if path.is_file() or found.kind == "gguf":
        return _gguf(path if path.is_file() else found.files[0])
    if not (path / "config.json").is_file():
        reason = what_directory_instead(path) or "has no config.json, which says how large the model is"
        raise CheckpointError(f"{path} {reason}")
    tensors = read_shards(found.files, found.owners)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    size = sum(tensor.num_bytes for tensor in tensors.values())
    return ModelSource(path, read_config(path / "config.json"), shapes, size)


def _gguf(path: Path) -> ModelSource:
    checkpoint = open_checkpoint(path)
    shapes = {name: tensor.shape for name, tensor in checkpoint.stored().items()}
    size = sum(file.stat().st_size for file in checkpoint.files)
    return ModelSource(checkpoint.path, checkpoint.config, shapes, size)
