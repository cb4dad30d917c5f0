"""Which files of a path hold a checkpoint's weights, found by names and the index alone: none of them is opened.

Of a directory, in this order:

    the files that model.safetensors.index.json names, where all of them are there; the index says which file a tensor
        is read from, whatever other files hold one of that name
    model.safetensors, also beside an index that is left over from shards which are gone
    all *.safetensors files, but for adapters and for weights in Mistral's own format
    the one GGUF file, or the parts of one that was split; projectors of images (mmproj) and importance matrices that
        lie beside a model are left out
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.kind import is_gguf, note_or_page
from vllm.logger import init_logger

logger = init_logger(__name__)

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
LOAD_FORMATS = ("auto", "safetensors", "hf", "gguf", "dummy")
_SAFETENSORS = ("auto", "safetensors", "hf")
_GGUF = ("auto", "gguf")
_SECOND_COPIES = ("consolidated", "adapter_model")
"""What the names of safetensors files begin with that hold no model in Hugging Face's format."""
_BESIDE_GGUF = ("mmproj", "imatrix")
"""What the names of GGUF files have in them that lie beside a model and are none."""
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(\w+)")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """kind: None where a path holds no weights. owners: the index, file names by tensor; empty without one."""

    kind: Literal["safetensors", "gguf"] | None = None
    files: list[Path] = field(default_factory=list)
    owners: Mapping[str, str] = field(default_factory=dict)


def find_weights(path: Path, load_format: str = "auto") -> WeightFiles:
    """The weight files of a directory, or of a GGUF file. Raises CheckpointError where they are not clear."""
    if load_format == "dummy":
        return WeightFiles()
    if path.is_file():
        return WeightFiles("gguf", _parts_of(path)) if load_format in _GGUF and is_gguf(path) else WeightFiles()
    if load_format in _SAFETENSORS and (found := _safetensors(path)).files:
        return found
    if load_format in _GGUF and (files := _gguf(path)):
        return WeightFiles("gguf", files)
    return WeightFiles()


def weight_files(path: Path, load_format: str = "auto") -> list[Path]:
    """`find_weights`, the files alone."""
    return find_weights(path, load_format).files


def content_name(file: Path) -> str:
    """The name of a weight file as far as its content depends on it: a GGUF file may be called anything."""
    if file.suffix in (".safetensors", ".json"):
        return file.name
    part = _PART.fullmatch(file.name)
    return f"gguf-{part[2]}-of-{part[3]}" if part else "gguf"


def read_text(path: Path) -> str:
    """A text file. Raises CheckpointError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a text: {error.reason} at byte {error.start}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {note_or_page(path) or error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _safetensors(path: Path) -> WeightFiles:
    has_whole = (path / WHOLE).is_file()
    if (path / INDEX).is_file():
        owners = _read_index(path / INDEX)
        names = sorted(set(owners.values()))
        missing = [name for name in names if not (path / name).is_file()]
        if not missing:
            if has_whole and WHOLE not in names:
                logger.warning("%s holds %s beside the shards of its index; the shards are read", path, WHOLE)
            return WeightFiles("safetensors", [path / name for name in names], owners)
        if not has_whole:
            raise CheckpointError(
                f"{path / INDEX} names the file {missing[0]!r}, which is not in {path}; is the download complete?"
            )
        logger.warning("%s names %r, which is not there: reading %s instead", path / INDEX, missing[0], WHOLE)
    files = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith(_SECOND_COPIES))
    if has_whole:
        if others := [file.name for file in files if file.name != WHOLE]:
            logger.warning("%s: %s is read, and %s, which no index names, not", path, WHOLE, ", ".join(others))
        files = [path / WHOLE]
    if files:
        _parts_of(files[0])
    return WeightFiles("safetensors", files)


def _read_index(file: Path) -> dict[str, str]:
    owners = read_json(file).get("weight_map")
    if not isinstance(owners, dict) or not owners or not all(isinstance(name, str) for name in owners.values()):
        raise CheckpointError(f"{file} has no weight_map of tensor names to file names")
    for name in owners.values():
        if Path(name).name != name:
            raise CheckpointError(f"{file} names the file {name!r}; only files beside it are read")
    return owners


def _gguf(path: Path) -> list[Path]:
    files = sorted(path.glob("*.gguf"))
    models = [file for file in files if not any(mark in file.name.lower() for mark in _BESIDE_GGUF)] or files
    if not models:
        return []
    parts = _parts_of(models[0])
    if others := [file.name for file in models if file not in parts]:
        names = ", ".join([models[0].name, *others])
        raise CheckpointError(f"{path} holds several GGUF files; pass the path of one of them: {names}")
    return parts


def parts_by_name(name: str) -> list[str]:
    """The names of all parts of a file that was split, in order, by the name of one; that of any other file alone."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.{match[4]}" for number in range(1, int(match[3]) + 1)]


def _parts_of(file: Path) -> list[Path]:
    """A file, or all parts of the one that it is a part of. Raises CheckpointError if one of them is not there."""
    parts = [file.with_name(name) for name in parts_by_name(file.name)]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise CheckpointError(
            f"{file} is one of {len(parts)} parts, and {missing.name} is not there; is the download complete?"
        )
    return parts
