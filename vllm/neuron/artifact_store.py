"""Where artifacts lie: directories named by the hash of their key, published by one rename, never deleted here.

    <store>/<hash>/manifest.json          what is in it: see `Manifest`
    <store>/<hash>/...                    what the target wrote
    <store>/.lock-<hash>                  held while <hash> is being made
    <store>/.used-<hash>                  empty; its time is the artifact's last load
    <store>/.tmp-<hash>-<pid>-<random>/   an artifact in the making: `content/`, and `making.json` that says whose it is
    <store>/<hash>.damaged-<time>/        an artifact whose files did not match its manifest, set aside

An artifact is complete when its directory has its final name. What a crash leaves behind is a `.tmp-` directory; the
next to hold the lock of that hash removes it, if `making.json` says that this machine made it.

Verification: sizes always; content up to `WHOLE_BYTES` a start, smallest files first, by whole SHA-256; the rest by a
SHA-256 over `SAMPLES` evenly spread pieces of a MiB, the first and the last among them. `verify(deep=True)` reads all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from vllm.exceptions import VLLMError
from vllm.logger import init_logger
from vllm.neuron.fingerprint import sha256
from vllm.version import __version__

logger = init_logger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
WHOLE_BYTES = 256 * 2**20
SAMPLES = 64
ABANDONED_SECONDS = 24 * 3600
"""Age from which another machine's unfinished artifact on shared storage is taken to be abandoned."""

_HASH = re.compile(r"[0-9a-f]{64}")
_MIB = 2**20
_MAKING = "making.json"


class ArtifactError(VLLMError):
    """An artifact is missing, damaged or does not fit, and may not be made anew."""


class DamagedArtifact(ArtifactError):
    """An artifact's files are not what its manifest says."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: bytes, and SHA-256 of the whole and of its samples (see the module's head)."""

    size: int
    sha256: str
    sampled_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and holds; `manifest.json` has exactly these names.

    key: everything that shaped it. hash: SHA-256 of the key. files: by path relative to the artifact, with "/".
    created: UTC, ISO 8601. tool: the package and version that made it.
    """

    format: int
    hash: str
    key: dict[str, Any]
    files: dict[str, FileEntry]
    created: str
    compile_seconds: float
    tool: str

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises DamagedArtifact where there is none, or none that can be understood."""
        try:
            found = json.loads((directory / MANIFEST).read_text())
            files = {_safe(name): FileEntry(**entry) for name, entry in found.pop("files").items()}
            manifest = cls(files=files, **found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedArtifact(f"{directory / MANIFEST} cannot be read: {error}") from None
        if manifest.format != FORMAT:
            raise DamagedArtifact(f"{directory} has manifest format {manifest.format}; this version reads {FORMAT}")
        return manifest

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is no path inside the artifact")
    return name


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
        size = file.stat().st_size
        if size != entry.size:
            return f"has {size} bytes instead of {entry.size}"
        matches = sha256(file) == entry.sha256 if whole else sampled_sha256(file) == entry.sampled_sha256
    except OSError as error:
        return str(error.strerror or error)
    return "" if matches else "its content is not what was written"


def sampled_sha256(file: Path) -> str:
    """SHA-256 over the size and `SAMPLES` pieces of a MiB, evenly spread from the first to the last."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - _MIB)
    with file.open("rb", buffering=0) as stream:
        for offset in sorted({last * step // (SAMPLES - 1) for step in range(SAMPLES)}):
            stream.seek(offset)
            digest.update(stream.read(_MIB))
    return digest.hexdigest()


def note_use(artifact: Path) -> None:
    """Remember that `artifact` was loaded now, beside it. A store that cannot be written remembers nothing."""
    if not _HASH.fullmatch(artifact.name):
        return
    try:
        (artifact.parent / f".used-{artifact.name}").touch()
    except OSError as error:
        logger.debug("the use of %s is not noted: %s", artifact, error)


def last_use(artifact: Path) -> float | None:
    """When `artifact` was loaded last, in seconds since the epoch; None if it never was, as far as its store knows."""
    try:
        return (artifact.parent / f".used-{artifact.name}").stat().st_mtime
    except OSError:
        return None


class ArtifactStore:
    """One directory of artifacts. It need not exist until something is made in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        return self.directory / name

    def is_writable(self) -> bool:
        existing = self.directory
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)

    def manifests(self, most: int = 32) -> list[tuple[Path, Manifest]]:
        """The newest artifacts and their manifests; those that cannot be read are left out."""
        if not self.directory.is_dir():
            return []
        files = [file for file in self.directory.glob(f"*/{MANIFEST}") if not file.parent.name.startswith(".")]
        found = []
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:most]:
            try:
                found.append((file.parent, Manifest.read(file.parent)))
            except DamagedArtifact as error:
                logger.debug("%s", error)
        return found

    @contextmanager
    def locked(self, name: str) -> Iterator[float]:
        """Alone in making `name`, over all processes. Yields the seconds waited for another to finish.

        Raises ArtifactError where files cannot be locked.
        """
        started = time.monotonic()
        lock = FileLock(self.directory / f".lock-{name}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._acquire(lock, name)
        except (OSError, NotImplementedError) as error:
            raise ArtifactError(
                f"{self.directory} cannot be locked ({error}), so that two might compile into it at once. Mount it "
                "with file locks (NFS with its lock service, Lustre with -o flock), or set NEURON_COMPILED_ARTIFACTS "
                "to another place"
            ) from error
        try:
            yield time.monotonic() - started
        finally:
            lock.release()

    def _acquire(self, lock: BaseFileLock, name: str) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is making the artifact %s; waiting for it", self.path(name))
            lock.acquire()

    @contextmanager
    def making(self, name: str, key: dict[str, Any]) -> Iterator[Path]:
        """An empty directory to fill; published as `name` at the end of the block, removed if the block fails.

        Call with `locked(name)` held. Raises ArtifactError, before the block, where nothing could be published.
        """
        self.remove_remains(name)
        scratch = self.directory / f".tmp-{name}-{os.getpid()}-{secrets.token_hex(4)}"
        started = time.monotonic()
        try:
            content = self._prepared(scratch)
            yield content
            _manifest_of(content, name, key, time.monotonic() - started).write(content)
            self._publish(content, name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _prepared(self, scratch: Path) -> Path:
        """The empty `content` in a new `scratch`, brought there as an artifact will be: by renaming a directory."""
        try:
            scratch.mkdir(mode=0o700)
            (scratch / _MAKING).write_text(json.dumps(_this_maker()))
            (scratch / "empty").mkdir(mode=0o700)
            return (scratch / "empty").rename(scratch / "content")
        except OSError as error:
            raise ArtifactError(
                f"nothing can be made in {self.directory} ({error}): it must take files and rename directories, which "
                "buckets that are mounted as files do not. Set NEURON_COMPILED_ARTIFACTS to another place"
            ) from error

    def _publish(self, content: Path, name: str) -> None:
        _sync(content)
        final = self.path(name)
        if final.exists():
            aside = self.path(f"{name}.damaged-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}")
            final.rename(aside)
            logger.warning("the damaged artifact was set aside as %s", aside)
        content.rename(final)
        _sync_directory(self.directory)

    def remove_remains(self, name: str) -> None:
        """Remove what a dead process left of `name`. Call with `locked(name)` held: nobody else here is making it."""
        for scratch in self.directory.glob(f".tmp-{name}-*"):
            if _is_abandoned(scratch):
                logger.info("removing %s, left behind by a process that died", scratch)
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                logger.warning("leaving %s alone: another machine may be at work there", scratch)


def _this_maker() -> dict[str, Any]:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": boot_id.read_text().strip() if boot_id.exists() else "",
        "started": time.time(),
    }


def _is_abandoned(scratch: Path) -> bool:
    """Whether `scratch` is ours and nobody works in it, given that we hold its lock on this machine."""
    try:
        maker = json.loads((scratch / _MAKING).read_text())
        here = _this_maker()
        same_machine = maker["host"] == here["host"] or (maker["boot_id"] and maker["boot_id"] == here["boot_id"])
        return bool(same_machine or time.time() - maker["started"] > ABANDONED_SECONDS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _manifest_of(content: Path, name: str, key: dict[str, Any], seconds: float) -> Manifest:
    files = sorted(file for file in content.rglob("*") if file.is_file())
    return Manifest(
        format=FORMAT,
        hash=name,
        key=key,
        files={
            file.relative_to(content).as_posix(): FileEntry(file.stat().st_size, sha256(file), sampled_sha256(file))
            for file in files
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        compile_seconds=round(seconds, 3),
        tool=f"vllm {__version__}",
    )


def _sync(directory: Path) -> None:
    """Force files and directories to the disk, so that a published artifact survives a power cut whole."""
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir():
            path.chmod(0o700)
            _sync_directory(path)
        else:
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
