"""What a checkpoint's weights are, by content: the SHA-256 of each weight file.

A copy of a checkpoint has the fingerprint of the original wherever it lies; a changed weight changes it. Files are read
whole once. The result is remembered in the cache directory under the file's identity (path, inode, size, and the times
of its last change of content and of status), so that a warm start reads no weights. The status time cannot be set
back by copying tools, so replacing a file always counts as a change. A file changed so recently that a further change
might bear the same times is not remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.artifacts.ownership import write_fault_within
from vllm.checkpoint.files import content_name
from vllm.logger import init_logger
from vllm.sizes import GIB, MIB

logger = init_logger(__name__)

CLOCK_GRANULARITY_SECONDS = 2.0
"""Files changed more recently than this are hashed again at the next start; the coarsest file system clocks tick so."""

_PIECE = 8 * MIB

Read = Callable[[int], None]
"""Called with the number of bytes just read."""


def adapter_files(directory: Path) -> list[Path]:
    """The files of a LoRA adapter in PEFT's form."""
    return [directory / "adapter_config.json", *sorted(directory.glob("*.safetensors"))]


def fingerprint(files: list[Path], read: Read = lambda count: None) -> dict[str, str]:
    """SHA-256 by file name, as far as that says something that the content does not (`content_name`)."""
    return {content_name(file): file_sha256(file, read) for file in files}


def file_sha256(file: Path, read: Read = lambda count: None) -> str:
    """The SHA-256 of a file, from memory if the file is as it was."""
    file = file.resolve()
    identity = _identity(file)
    note = _note_path(file)
    known = _read_note(note)
    if known.get("identity") == identity:
        return str(known["sha256"])
    if identity["size"] > GIB:
        logger.info("hashing %s (%.1f GiB), which is done once", file, identity["size"] / GIB)
    digest = sha256(file, read)
    if identity == _identity(file) and _is_settled(identity):
        _write_note(note, {"identity": identity, "sha256": digest})
    return digest


def sha256(file: Path, read: Read = lambda count: None) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()


def _identity(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {
        "path": str(file),
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _is_settled(identity: dict[str, Any]) -> bool:
    changed = max(identity["mtime_ns"], identity["ctime_ns"]) / 1e9
    return bool(time.time() - changed > CLOCK_GRANULARITY_SECONDS)


def cache_root() -> Path:
    """The package's cache directory."""
    return Path(envs.VLLM_CACHE_ROOT).expanduser()


def _note_path(file: Path) -> Path:
    return cache_root() / "fingerprints" / f"{hashlib.sha256(str(file).encode()).hexdigest()}.json"


def _read_note(note: Path) -> dict[str, Any]:
    try:
        if fault := write_fault_within(note.parent, [note]):
            raise PermissionError(fault)
        found = json.loads(note.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("the remembered hash in %s cannot be read (%s); hashing again", note, error)
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("sha256"), str) else {}


def _write_note(note: Path, content: dict[str, Any]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = note.with_name(f"{note.name}.{os.getpid()}")
        scratch.write_text(json.dumps(content))
        scratch.replace(note)
    except OSError as error:
        logger.warning("the hash of %s cannot be remembered: %s", content["identity"]["path"], error)
