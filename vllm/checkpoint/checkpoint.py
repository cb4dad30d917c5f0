"""`open_checkpoint`: a model as found on disk or on the hub, with its weights mapped and its config in normal form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm.checkpoint import hub
from vllm.checkpoint.config import Config, read_config
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import LOAD_FORMATS, WeightFiles, find_weights, read_json
from vllm.checkpoint.forms import form_beside, quant_method
from vllm.checkpoint.generation import GENERATION_CONFIG
from vllm.checkpoint.gguf_file import GgufFile, read_gguf_parts
from vllm.checkpoint.gguf_model import gguf_config, gguf_generation_config, gguf_tensors
from vllm.checkpoint.kind import what_directory_instead, what_instead
from vllm.checkpoint.safetensors_file import read_shards
from vllm.checkpoint.scaled import with_scale
from vllm.checkpoint.tensor import Tensor
from vllm.checkpoint.tensor_names import fit_config, spelled


@dataclass(slots=True)
class Checkpoint:
    """A model's files.

    path: the directory, or the GGUF file.
    config: the normal form described in `vllm.checkpoint.config`.
    generation_config: default sampling parameters, as in generation_config.json; empty if there are none.
    tokenizer_config: as in tokenizer_config.json; empty if there is none.
    files: the files that hold the weights.
    owners: the files that the index names, by tensor; empty without an index.
    gguf: the file itself, if it is one.
    """

    path: Path
    config: Config
    generation_config: Config = field(default_factory=dict)
    tokenizer_config: Config = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    owners: Mapping[str, str] = field(default_factory=dict)
    gguf: GgufFile | None = None
    _tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def tensors(self) -> list[str]:
        """Every tensor's name, in Hugging Face's spelling."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor:
        """A tensor, not yet read, with the scales that lie beside it.

        Raises CheckpointError for a name that is not there, and for scales that do not fit.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}{self._why_not_there(name)}")
        try:
            return with_scale(self._tensors[name], self._tensors, self.config)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def locate(self, name: str) -> tuple[Checkpoint, str]:
        """Whose a tensor is, and its name there, as `DraftCheckpoint` says it over two checkpoints."""
        return self, name

    def stored(self) -> Mapping[str, Tensor]:
        """All tensors as the files have them, by name: without their scales."""
        return self._tensors

    def _why_not_there(self, name: str) -> str:
        if name in self.owners:
            return f", though its index says that {self.owners[name]} holds it; is the download complete?"
        nearest = difflib.get_close_matches(name, self._tensors, n=1)
        hint = f" (nearest: {nearest[0]!r})" if nearest else ""
        form = quant_method(self.config)
        return f"{hint}; its config says that it is quantised by {form!r}" if form else hint


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    load_format: str = "auto",
) -> Checkpoint:
    """Open a directory (config.json and *.safetensors, or one *.gguf), a GGUF file, or a hub id.

    No weight is read. load_format: "auto" takes safetensors before GGUF; "safetensors" (or "hf") or "gguf" insists;
    "dummy" reads the config alone and invents the weights. Raises CheckpointError when it cannot be used, with what
    would work.
    """
    if load_format not in LOAD_FORMATS:
        raise CheckpointError(f"unknown load_format {load_format!r}; known: {', '.join(LOAD_FORMATS)}")
    patterns = hub.METADATA + hub.TOKENIZER + hub.PROCESSOR + ([] if load_format == "dummy" else hub.WEIGHTS)
    path = hub.local_path(str(model), patterns=patterns, revision=revision, download_dir=download_dir, token=token)
    found = find_weights(path, load_format)
    if found.kind == "gguf":
        return _open_gguf(found.files)
    if path.is_file():
        raise CheckpointError(_why_no_checkpoint(path, load_format))
    if found.kind is None and load_format != "dummy":
        raise CheckpointError(_why_no_weights(path, load_format))
    return _open_hf(path, found)


def _why_no_checkpoint(file: Path, load_format: str) -> str:
    if file.suffix == ".safetensors" or file.name == "config.json":
        return f"{file} is one file of a checkpoint; pass its directory, {file.parent}"
    if reason := what_instead(file):
        return f"{file} is not a checkpoint: {reason}"
    return f"{file} cannot be opened as {load_format}; expected a directory or a GGUF file"


def _why_no_weights(path: Path, load_format: str) -> str:
    if load_format != "gguf" and (reason := what_directory_instead(path)):
        return f"{path} {reason}"
    wanted = {"auto": "*.safetensors or *.gguf", "hf": "*.safetensors"}.get(load_format, f"*.{load_format}")
    return f"{path} holds no {wanted} file (a GGUF file of a hub repository is named owner/name/file.gguf)"


def _open_hf(path: Path, found: WeightFiles) -> Checkpoint:
    if not (path / "config.json").is_file():
        reason = what_directory_instead(path) or "has no config.json, which says what its weights mean"
        raise CheckpointError(f"{path} {reason}")
    tensors = spelled(read_shards(found.files, found.owners))
    config = read_config(path / "config.json", form_beside(path, tensors))
    checkpoint = Checkpoint(
        path,
        fit_config(config, tensors, path / "config.json"),
        generation_config=read_json(path / GENERATION_CONFIG),
        tokenizer_config=read_json(path / "tokenizer_config.json"),
        files=found.files,
        owners=found.owners,
        _tensors=tensors,
    )
    if not found.files:
        from vllm.checkpoint.dummy import dummy_tensors

        checkpoint._tensors = dummy_tensors(config)
    return checkpoint


def _open_gguf(parts: list[Path]) -> Checkpoint:
    path, file = parts[0], read_gguf_parts(parts)
    config = gguf_config(file)
    tensors = gguf_tensors(file, config)
    return Checkpoint(
        path,
        fit_config(config, tensors, path),
        generation_config=gguf_generation_config(file),
        files=parts,
        gguf=file,
        _tensors=tensors,
    )
