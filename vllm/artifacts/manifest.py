"""What an artifact says of itself, `manifest.json`, and whether its files are what it says.

A manifest may have been written by anybody: it is read within bounds, every name in it is checked for its type, and
whatever is wrong with it is a `DamagedArtifact`.

Verification: sizes always; content up to `WHOLE_BYTES` a start, smallest files first, by whole SHA-256; the rest by a
SHA-256 over `SAMPLES` evenly spread pieces of a MiB, the first and the last among them. `verify(deep=True)` reads all.
It guards against damage, not against a writer: see `ownership`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vllm.artifacts.fingerprint import sha256
from vllm.exceptions import VLLMError
from vllm.sizes import MIB

FORMAT = 1
MANIFEST = "manifest.json"
WHOLE_BYTES = 256 * MIB
SAMPLES = 64
MAX_JSON_BYTES = 16 * MIB
"""Longest JSON file that is read out of an artifact, in bytes."""
MAX_JSON_DEPTH = 64
"""Deepest nesting of such a file."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactError(VLLMError):
    """An artifact is missing, damaged or does not fit, and may not be made anew."""


class DamagedArtifact(ArtifactError):
    """An artifact's files are not what its manifest says, or hold what cannot be run."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact."""

    size: int
    """Bytes."""
    sha256: str
    """Of the whole content, in hexadecimal."""
    sampled_sha256: str
    """Of the size and the samples (see the module's head)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and holds; `manifest.json` has exactly these names."""

    format: int
    """`FORMAT` of the version that wrote it."""
    hash: str
    """SHA-256 of the key."""
    key: dict[str, Any]
    """Everything that shaped the artifact."""
    files: dict[str, FileEntry]
    """By path relative to the artifact, with "/"."""
    created: str
    """UTC, ISO 8601."""
    compile_seconds: float
    tool: str
    """Package and version that made it."""

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises DamagedArtifact where there is none, or none that can be understood."""
        path = directory / MANIFEST
        found = read_json(path)
        if not isinstance(found, dict) or set(found) != set(_MANIFEST_TYPES):
            raise DamagedArtifact(f"{path} does not have exactly the names {', '.join(_MANIFEST_TYPES)}")
        if found["format"] != FORMAT:
            raise DamagedArtifact(f"{path} has manifest format {found['format']!r:.40}; this version reads {FORMAT}")
        _check_types(path, found, _MANIFEST_TYPES)
        for name, entry in found["files"].items():
            if fault := _name_fault(name):
                raise DamagedArtifact(f"{path}: {fault}")
            if not isinstance(entry, dict) or set(entry) != set(_ENTRY_TYPES):
                raise DamagedArtifact(f"{path}: file {name!r} does not have exactly {', '.join(_ENTRY_TYPES)}")
            _check_types(path, entry, _ENTRY_TYPES)
        return cls(**{**found, "files": {name: FileEntry(**entry) for name, entry in found["files"].items()}})

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_MANIFEST_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "format": _is_count,
    "hash": _is_sha256,
    "key": _is_mapping,
    "files": _is_mapping,
    "created": _is_text,
    "compile_seconds": _is_duration,
    "tool": _is_text,
}
_ENTRY_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "size": _is_count,
    "sha256": _is_sha256,
    "sampled_sha256": _is_sha256,
}


def _check_types(path: Path, found: Mapping[str, Any], types: Mapping[str, Callable[[Any], bool]]) -> None:
    for name, holds in types.items():
        if not holds(found[name]):
            raise DamagedArtifact(f"{path}: {name!r} cannot be {found[name]!r:.40}")


def _name_fault(name: str) -> str:
    """Why `name` is no path of a file inside the artifact; "" if it is one."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        inside = False
    return "" if inside and name != MANIFEST else f"{name!r:.80} is no path inside the artifact"


def read_json(path: Path) -> Any:
    """What a JSON file of an artifact holds. Raises DamagedArtifact for a file that cannot be read within bounds."""
    try:
        value = json.loads(_read_bounded(path))
    except RecursionError:
        raise DamagedArtifact(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {error}") from None
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise DamagedArtifact(f"{path} cannot be read: it is nested deeper than {MAX_JSON_DEPTH}")
    return value


def _read_bounded(path: Path) -> str:
    """The text of a regular file; nothing that could block or go on for ever is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if found.st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has {found.st_size} bytes, more than {MAX_JSON_BYTES}")
        return stream.read(MAX_JSON_BYTES).decode()


def _is_deeper(value: Any, most: int) -> bool:
    """Whether containers are nested deeper than `most`; found level by level, without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted names, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def key_hash(key: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(key).encode()).hexdigest()


def verify(directory: Path, deep: bool = False) -> Manifest:
    """Read the manifest and hold the files against it. Raises DamagedArtifact that names every file at fault."""
    manifest = Manifest.read(directory)
    faults = []
    if key_hash(manifest.key) != manifest.hash:
        faults.append(f"{MANIFEST}: the key does not have the hash {manifest.hash}")
    whole_left = WHOLE_BYTES
    for name, entry in sorted(manifest.files.items(), key=lambda item: item[1].size):
        whole = deep or entry.size <= whole_left
        whole_left -= entry.size if whole else 0
        if fault := _file_fault(directory / name, entry, whole):
            faults.append(f"{name}: {fault}")
    if faults:
        raise DamagedArtifact(f"the artifact {directory} is damaged: {'; '.join(faults)}")
    return manifest


def _file_fault(file: Path, entry: FileEntry, whole: bool) -> str:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if found.st_size != entry.size:
            return f"has {found.st_size} bytes instead of {entry.size}"
        matches = sha256(file) == entry.sha256 if whole else sampled_sha256(file) == entry.sampled_sha256
    except OSError as error:
        return str(error.strerror or error)
    return "" if matches else "its content is not what was written"


def sampled_sha256(file: Path) -> str:
    """SHA-256 over the size and `SAMPLES` pieces of a MiB, evenly spread from the first to the last."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - MIB)
    with file.open("rb", buffering=0) as stream:
        for offset in sorted({last * step // (SAMPLES - 1) for step in range(SAMPLES)}):
            stream.seek(offset)
            digest.update(stream.read(MIB))
    return digest.hexdigest()
