"""`open_checkpoint`: a model as found on disk or on the hub, with its weights mapped and its config in normal form."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.checkpoint import hub
from vllm.checkpoint.config import Config, normalise_config
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.gguf_file import GgufFile, read_gguf
from vllm.checkpoint.gguf_model import gguf_config, gguf_generation_config, gguf_tensors
from vllm.checkpoint.safetensors_file import read_safetensors
from vllm.checkpoint.scaled import with_scales
from vllm.checkpoint.tensor import Tensor

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")


@dataclass(slots=True)
class Checkpoint:
    """A model's files.

    path: the directory, or the GGUF file.
    config: the normal form described in `vllm.checkpoint.config`.
    generation_config: default sampling parameters, as in generation_config.json; empty if there are none.
    tokenizer_config: as in tokenizer_config.json; empty if there is none.
    files: the files that hold the weights.
    gguf: the file itself, if it is one.
    """

    path: Path
    config: Config
    generation_config: Config = field(default_factory=dict)
    tokenizer_config: Config = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    gguf: GgufFile | None = None
    _tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def tensors(self) -> list[str]:
        """Every tensor's name, in Hugging Face's spelling."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor:
        """A tensor, not yet read. Raises CheckpointError for a name that is not there."""
        if name not in self._tensors:
            nearest = difflib.get_close_matches(name, self._tensors, n=1)
            hint = f" (nearest: {nearest[0]!r})" if nearest else ""
            raise CheckpointError(f"{self.path} has no tensor {name!r}{hint}")
        return self._tensors[name]


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    load_format: str = "auto",
) -> Checkpoint:
    """Open a directory (config.json and *.safetensors, or one *.gguf), a GGUF file, or a hub id.

    No weight is read. load_format: "auto" takes safetensors before GGUF; "safetensors" or "gguf" insists; "dummy" reads
    the config alone and invents the weights. Raises CheckpointError when it cannot be used, with what would work.
    """
    if load_format not in _LOAD_FORMATS:
        raise CheckpointError(f"unknown load_format {load_format!r}; known: {', '.join(_LOAD_FORMATS)}")
    patterns = hub.METADATA + hub.TOKENIZER + hub.PROCESSOR + ([] if load_format == "dummy" else hub.WEIGHTS)
    path = hub.local_path(str(model), patterns=patterns, revision=revision, download_dir=download_dir, token=token)
    if path.is_file():
        return _open_file(path, load_format)
    return _open_directory(path, load_format)


def _open_file(path: Path, load_format: str) -> Checkpoint:
    if path.suffix == ".gguf" and load_format in ("auto", "gguf"):
        return _open_gguf(path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise CheckpointError(f"{path} is one file of a checkpoint; pass its directory, {path.parent}")
    raise CheckpointError(f"{path} cannot be opened as {load_format}; expected a directory or a .gguf file")


def _open_directory(path: Path, load_format: str) -> Checkpoint:
    has_safetensors = (path / _INDEX).is_file() or any(path.glob("*.safetensors"))
    gguf_files = sorted(path.glob("*.gguf"))
    if load_format == "dummy":
        return _open_hf(path, tensors={}, files=[])
    if load_format != "gguf" and has_safetensors:
        tensors, files = _safetensors_files(path)
        return _open_hf(path, tensors, files)
    if load_format != "safetensors" and gguf_files:
        if len(gguf_files) > 1:
            names = ", ".join(file.name for file in gguf_files)
            raise CheckpointError(f"{path} holds several GGUF files; pass the path of one of them: {names}")
        return _open_gguf(gguf_files[0])
    raise CheckpointError(_no_weights(path, load_format))


def _no_weights(path: Path, load_format: str) -> str:
    wanted = {"auto": "*.safetensors or *.gguf"}.get(load_format, f"*.{load_format}")
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if not pickles:
        return f"{path} holds no {wanted} file (a GGUF file of a hub repository is named owner/name/file.gguf)"
    return (
        f"{path} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when read and are never "
        "opened. Convert them in an environment that you trust with them: "
        "`AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)`, "
        "and copy the tokenizer's files over"
    )


def _safetensors_files(path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of the files that the index names, or of all *.safetensors files if there is no index."""
    if (path / _INDEX).is_file():
        weight_map = read_json(path / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{path / _INDEX} has no weight_map of tensor names to file names")
        files = [_shard(path, name) for name in sorted(set(weight_map.values()))]
    else:
        weight_map = None
        files = sorted(path.glob("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in several files of {path}")
            tensors[name] = tensor
    if missing := sorted((weight_map or {}).keys() - tensors.keys()):
        raise CheckpointError(
            f"{path}: the index names {len(missing)} tensors that no file holds, such as {missing[0]!r}"
        )
    return tensors, files


def _shard(path: Path, name: str) -> Path:
    file = path / name
    if Path(name).name != name or not file.is_file():
        raise CheckpointError(
            f"{path / _INDEX} names the file {name!r}, which is not in {path}; is the download complete?"
        )
    return file


def _open_hf(path: Path, tensors: dict[str, Tensor], files: list[Path]) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, which says what its weights mean")
    config = normalise_config(read_json(path / "config.json"))
    tokenizer_config = read_json(path / "tokenizer_config.json")
    checkpoint = Checkpoint(
        path,
        config,
        generation_config=read_json(path / "generation_config.json"),
        tokenizer_config=tokenizer_config,
        files=files,
        _tensors=with_scales(tensors, config),
    )
    if not files:
        from vllm.checkpoint.dummy import dummy_tensors

        checkpoint._tensors = dummy_tensors(config)
    return checkpoint


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    if file.metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{path} is one of {file.metadata['split.count']} parts; join them (`llama-gguf-split --merge`)"
        )
    config = gguf_config(file)
    return Checkpoint(
        path,
        config,
        generation_config=gguf_generation_config(file),
        files=[path],
        gguf=file,
        _tensors=gguf_tensors(file, config),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content
