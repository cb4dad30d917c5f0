"""Where artifacts lie: directories named by the hash of their key, published by one rename, never deleted here.

    <store>/<hash>/manifest.json          what is in it: see `Manifest`
    <store>/<hash>/...                    what the target wrote
    <store>/.lock-<hash>                  held while <hash> is being made
    <store>/.used-<hash>                  empty; its time is the artifact's last load
    <store>/.tmp-<hash>-<pid>-<random>/   an artifact in the making: `content/`, and `making.json` that says whose it is
    <store>/<hash>.damaged-<time>/        an artifact whose files did not match its manifest, set aside

An artifact is complete when its directory has its final name. What a crash leaves behind is a `.tmp-` directory; the
next to hold the lock of that hash removes it, if `making.json` says that this machine made it.

Stores and artifacts that somebody else may have written are not used: `ArtifactStore.fault` and `trust_fault`, by the
rules of `ownership`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from vllm.artifacts.fingerprint import sha256
from vllm.artifacts.manifest import (
    FORMAT,
    MANIFEST,
    ArtifactError,
    DamagedArtifact,
    FileEntry,
    Manifest,
    read_json,
    sampled_sha256,
)
from vllm.artifacts.ownership import write_fault, write_fault_within
from vllm.logger import init_logger
from vllm.sizes import MIB
from vllm.version import __version__

logger = init_logger(__name__)

ABANDONED_SECONDS = 24 * 3600
"""Age from which another machine's unfinished artifact on shared storage is taken to be abandoned."""

REMEDY = (
    "Make it this user's own (`chown -R`) and closed to others (`chmod -R go-w`), run as the user whose it is, or set "
    "NEURON_COMPILED_ARTIFACTS to another place"
)
"""What to do about a store or an artifact that is not trusted."""

_HASH = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAKING = "making.json"


def note_use(artifact: Path) -> None:
    """Remember that `artifact` was loaded now, beside it. A store that cannot be written remembers nothing."""
    if not _HASH.fullmatch(artifact.name):
        return
    try:
        (artifact.parent / f".used-{artifact.name}").touch()
    except OSError as error:
        logger.debug("the use of %s is not noted: %s", artifact, error)


def _time_of(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def last_use(artifact: Path) -> float | None:
    """When `artifact` was loaded last, in seconds since the epoch; None if it never was, as far as its store knows."""
    try:
        return (artifact.parent / f".used-{artifact.name}").stat().st_mtime
    except OSError:
        return None


class FullStore(ArtifactError):
    """A store's file system does not have the room that an artifact takes."""


def trust_fault(artifact: Path) -> str:
    """Why somebody else may have written files of `artifact`; "" if only this user and the superuser can have.

    Looks at the directory, and at all that its manifest names. Raises DamagedArtifact for what cannot be read.
    """
    try:
        if fault := write_fault_within(artifact, [artifact / MANIFEST]):
            return fault
        files = {artifact / name for name in Manifest.read(artifact).files}
        directories = {parent for file in files for parent in file.parents if artifact in parent.parents}
        return write_fault_within(artifact, sorted(directories | {file for file in files if file.exists()}))
    except OSError as error:
        raise DamagedArtifact(f"{artifact} cannot be read: {error}") from None


class ArtifactStore:
    """One directory of artifacts. It need not exist until something is made in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        return self.directory / name

    def fault(self) -> str:
        """Why nothing in this store can be read, or believed; "" if it can, or if there is no store yet."""
        try:
            os.scandir(self.directory).close()
            return write_fault(self.directory)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self.directory} cannot be used: {error.strerror or error}"

    def is_writable(self) -> bool:
        existing = self._existing()
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)

    def check_room(self, needed: int) -> None:
        """Raise FullStore if the file system has fewer than `needed` bytes for this user, as far as it tells."""
        if (free := self._free_bytes()) < needed:
            raise FullStore(_no_room(self.directory, needed, free))

    def _free_bytes(self) -> int:
        """What this user can still write there; very much where the file system does not tell."""
        found = os.statvfs(self._existing())
        return found.f_bavail * found.f_frsize if found.f_blocks else 2**63

    def _existing(self) -> Path:
        """The directory, or the nearest above it that exists."""
        existing = self.directory
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        return existing

    def manifests(self, most: int = 32) -> list[tuple[Path, Manifest]]:
        """The newest artifacts and their manifests; those that cannot be read are left out."""
        if not self.directory.is_dir():
            return []
        files = [file for file in self.directory.glob(f"*/{MANIFEST}") if not file.parent.name.startswith(".")]
        found = []
        for file in sorted(files, key=_time_of, reverse=True)[:most]:
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
            if _is_full(error):
                raise FullStore(_no_room(self.directory, 0, self._free_bytes())) from error
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
    def making(self, name: str, key: dict[str, Any], num_bytes: int = 0) -> Iterator[Path]:
        """An empty directory to fill; published as `name` at the end of the block, removed if the block fails.

        Call with `locked(name)` held. num_bytes: what will be written, 0 if that is not known. Raises ArtifactError,
        before the block, where nothing could be published, and FullStore where the disk became full.
        """
        self.remove_remains(name)
        scratch = self.directory / f".tmp-{name}-{os.getpid()}-{secrets.token_hex(4)}"
        started = time.monotonic()
        try:
            content = self._prepared(scratch)
            yield content
            _manifest_of(content, name, key, time.monotonic() - started).write(content)
            self._publish(content, name)
        except Exception as error:
            if not _is_full(error):
                raise
            written, free = _bytes_in(scratch), self._free_bytes()
            raise FullStore(_no_room(self.directory, max(num_bytes, written), free + written)) from error
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
        if os.path.lexists(final):
            aside = self.path(f"{name}.damaged-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}")
            final.rename(aside)
            logger.warning("the artifact that cannot be used was set aside as %s", aside)
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


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk or a used-up quota is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_room(directory: Path, needed: int, free: int) -> str:
    takes = f"the artifact takes {needed / MIB:.1f} MiB" if needed else "an artifact takes more"
    return f"there is no room in {directory}: {free / MIB:.1f} MiB are free, {takes}"


def _bytes_in(directory: Path) -> int:
    return sum(size for file in directory.rglob("*") if (size := _size_of(file)))


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


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
        maker = read_json(scratch / _MAKING)
        here = _this_maker()
        same_machine = maker["host"] == here["host"] or (maker["boot_id"] and maker["boot_id"] == here["boot_id"])
        return bool(same_machine or time.time() - maker["started"] > ABANDONED_SECONDS)
    except (DamagedArtifact, KeyError, TypeError):
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
