"""What a path is, told by names and first bytes, so that what is no checkpoint is refused by what it is instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from vllm.checkpoint.errors import CheckpointError
from vllm.logger import init_logger

logger = init_logger(__name__)

GGUF_MAGIC = b"GGUF"
_HEAD_BYTES = 256
_LFS_POINTER = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html", b"<head")
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_ARCHIVES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_FOLDER = "models--"


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes: Ollama and other caches name files by their hash.

    A path that is not there is judged by its suffix.
    """
    return first_bytes(path).startswith(GGUF_MAGIC) if path.is_file() else path.suffix == ".gguf"


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def note_or_page(path: Path) -> str | None:
    """What a file is that stands for another, or was saved in its place, and what helps; None for any other file."""
    head = first_bytes(path)
    if not head:
        return "it is empty; download it again"
    if head.startswith(_LFS_POINTER):
        return (
            "it is a git-lfs pointer, a note of where the real file is. Fetch the files themselves: `git lfs pull` in "
            f"{path.parent}, or `hf download REPOSITORY --local-dir DIR`"
        )
    if head.lstrip().lower().startswith(_HTML):
        return "it is a web page (HTML), such as a login or an error page, that was saved as a file; download it again"
    return None


def what_instead(path: Path) -> str | None:
    """What a file that is not a readable weight file is, and what helps; None if its first bytes do not tell."""
    head = first_bytes(path)
    if reason := note_or_page(path):
        return reason
    if head.startswith(GGUF_MAGIC):
        return "it is a GGUF file; rename it to *.gguf"
    if head.startswith(_OLD_GGML):
        return "it is of a format from before GGUF; convert the original model again with a current llama.cpp"
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in _PICKLE_PROTOCOLS):
        return "it is a pickle, as torch.save writes it, which can run code when read and is never opened"
    if kind := next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None):
        return f"it is a {kind} archive; unpack it first"
    if head[8:9] == b"{" and path.suffix == ".gguf":
        return "it looks like a safetensors file; rename it to *.safetensors, and pass its directory"
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        shown = head.decode().lstrip().split("\n")[0][:60]
        return f"it is a text that begins with {shown!r}; download it again"
    return None


def settled_directory(path: Path, revision: str | None = None) -> Path:
    """`path`, or the snapshot in it where it is a repository's folder in the hub's cache.

    Raises CheckpointError for a cache whose snapshot is not clear, naming what to pass.
    """
    if path.name == "snapshots" and path.parent.name.startswith(_HUB_FOLDER):
        path = path.parent
    if (path / "config.json").is_file() or not path.is_dir():
        return path
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        _refuse_whole_cache(path)
        return path
    reference = path / "refs" / (revision or "main")
    if reference.is_file() and (chosen := snapshots / reference.read_text().strip()).is_dir():
        return _noted(path, chosen)
    found = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    if len(found) == 1 and revision is None:
        return _noted(path, found[0])
    listed = ", ".join(str(entry) for entry in found) or f"none is in {snapshots}; is the download complete?"
    raise CheckpointError(f"{path} is a repository's folder in the hub's cache; pass one of its snapshots: {listed}")


def _noted(path: Path, chosen: Path) -> Path:
    logger.info("%s is a repository's folder in the hub's cache: taking its snapshot %s", path, chosen.name)
    return chosen


def _refuse_whole_cache(path: Path) -> None:
    if folders := sorted(entry.name for entry in path.glob(f"{_HUB_FOLDER}*--*") if entry.is_dir()):
        names = ", ".join(folders[:5])
        raise CheckpointError(f"{path} is a cache of the hub; pass one of the models in it, such as {names}")


def what_directory_instead(path: Path) -> str | None:
    """What a directory without a usable checkpoint is, as the rest of a sentence, and what helps; None: not known."""
    return next((said for ask in _DIRECTORIES if (said := ask(path)) is not None), None)


def _adapter(path: Path) -> str | None:
    file = path / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        entries = json.loads(file.read_text())
        base, kind = entries["base_model_name_or_path"], entries.get("peft_type", "LORA")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        base, kind = None, "LORA"
    of = f"the base model {base!r}" if isinstance(base, str) and base else "a base model that it does not name"
    return (
        f"is an adapter ({kind}, adapter_config.json) of {of}, not a model. Pass the base as the model, and the "
        f"adapter by --enable-lora --lora-modules NAME={path} where the device serves adapters; or merge the two "
        "(PEFT's merge_and_unload) and pass the result"
    )


def _mistral_native(path: Path) -> str | None:
    if not any(path.glob("consolidated*.safetensors")):
        return None
    return (
        "holds a model in Mistral's own format (consolidated.safetensors, params.json, tekken.json), which is not "
        "read. Download the same model in Hugging Face's format: config.json, model*.safetensors and tokenizer.json"
    )


def _meta_native(path: Path) -> str | None:
    if not ((path / "params.json").is_file() and any(path.glob("consolidated*.pth"))):
        return None
    return (
        "holds a model in Meta's own format (consolidated.*.pth, params.json), which is not read. Download the same "
        "model in Hugging Face's format: config.json, model*.safetensors and tokenizer.json"
    )


def _openvino(path: Path) -> str | None:
    names = [file.name for file in path.glob("*.xml") if file.with_suffix(".bin").is_file()]
    return _converted("OpenVINO", names)


def _onnx(path: Path) -> str | None:
    return _converted("ONNX", [file.name for file in (*path.glob("*.onnx"), *path.glob("onnx/*.onnx"))])


def _other_frameworks(path: Path) -> str | None:
    kinds = {"tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax", "saved_model.pb": "TensorFlow"}
    kind = next((kind for name, kind in kinds.items() if (path / name).is_file()), None)
    return _converted(kind or "", [name for name in kinds if (path / name).is_file()])


def _engines(path: Path) -> str | None:
    return _converted("TensorRT", [file.name for file in path.glob("*.engine")])


def _compiled(path: Path) -> str | None:
    if not ((path / "model.pt").is_file() and (path / "neuron_config.json").is_file()):
        return None
    return (
        "holds a model that NxD Inference compiled (model.pt, neuron_config.json), not a checkpoint. Pass the "
        "checkpoint that it was compiled from"
    )


def _diffusers(path: Path) -> str | None:
    if not (path / "model_index.json").is_file():
        return None
    return "is a pipeline of the diffusers library (model_index.json), not a language model"


def _converted(kind: str, names: list[str]) -> str | None:
    if not names:
        return None
    listed = ", ".join(sorted(names)[:3])
    return (
        f"holds a model converted to {kind} ({listed}), which is not read. Pass the model that it was converted from: "
        "a directory of safetensors files, or a GGUF file"
    )


def _pickled(path: Path) -> str | None:
    names = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if not names:
        return None
    return (
        f"holds its weights as pickles ({', '.join(names[:3])}), which can run code when read and are never opened. "
        "Convert them in an environment that you trust with them: "
        "`AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)`, "
        "and copy the tokenizer's files over"
    )


_DIRECTORIES: tuple[Callable[[Path], str | None], ...] = (
    _adapter,
    _mistral_native,
    _meta_native,
    _openvino,
    _compiled,
    _diffusers,
    _engines,
    _pickled,
    _onnx,
    _other_frameworks,
)
