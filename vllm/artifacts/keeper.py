"""Keeping house in artifact stores: what lies there, what is whole, and what a rule says may go.

Only what `artifact_store` made is ever listed or removed: directories named by a hash whose manifest bears that hash,
and such directories set aside as damaged. Removal is one rename out of sight, then the files that the manifest names; a
directory with anything else in it, a symbolic link, or an artifact that is being made is left alone, and said so.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vllm.artifacts.manifest import MANIFEST, DamagedArtifact, Manifest, verify
from vllm.artifacts.store import last_use

_HASH = re.compile(r"[0-9a-f]{64}")
_SET_ASIDE = re.compile(r"([0-9a-f]{64})\.damaged-[0-9T]+")
DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One artifact of a store. used: time of the last load, None if never. set_aside: it was found damaged before."""

    path: Path
    manifest: Manifest
    bytes: int
    made: float
    used: float | None
    set_aside: bool

    @property
    def hash(self) -> str:
        return self.manifest.hash

    @property
    def touched(self) -> float:
        """When it was made or loaded last."""
        return max(self.made, self.used or 0.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which artifacts go: those for which everything holds that is given. At least one must be."""

    older_than_seconds: float | None = None
    unused: bool = False
    keep: int | None = None
    hashes: tuple[str, ...] = ()
    set_aside: bool = False

    @property
    def is_empty(self) -> bool:
        return self == Rule()


def kept_in(store: Path) -> list[Kept]:
    """The artifacts of a store, the last touched first; a store that is not there has none."""
    if not store.is_dir():
        return []
    found = [kept for path in sorted(store.iterdir()) if (kept := _kept(path)) is not None]
    return sorted(found, key=lambda kept: kept.touched, reverse=True)


def _kept(path: Path) -> Kept | None:
    aside = _SET_ASIDE.fullmatch(path.name)
    if path.is_symlink() or not path.is_dir() or not (aside or _HASH.fullmatch(path.name)):
        return None
    try:
        manifest = Manifest.read(path)
    except DamagedArtifact:
        return None
    if manifest.hash != (aside[1] if aside else path.name):
        return None
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return Kept(path, manifest, size, _made(manifest, path), last_use(path), aside is not None)


def _made(manifest: Manifest, path: Path) -> float:
    try:
        return datetime.fromisoformat(manifest.created).timestamp()
    except ValueError:
        return path.stat().st_mtime


def fault_of(kept: Kept, deep: bool) -> str:
    """What is wrong with an artifact's files; "" if nothing. deep: every byte is read."""
    try:
        verify(kept.path, deep)
    except DamagedArtifact as error:
        return str(error)
    return ""


def chosen(kept: Iterable[Kept], rule: Rule, now: float | None = None) -> list[Kept]:
    """What `rule` says may go, of artifacts of one or several stores."""
    now = time.time() if now is None else now
    newest_first = sorted(kept, key=lambda each: each.touched, reverse=True)
    spared = set()
    if rule.keep is not None:
        spared = {each.path for each in [each for each in newest_first if not each.set_aside][: rule.keep]}
    return [each for each in newest_first if each.path not in spared and _matches(each, rule, now)]


def _matches(kept: Kept, rule: Rule, now: float) -> bool:
    if rule.older_than_seconds is not None and now - kept.touched < rule.older_than_seconds:
        return False
    if rule.unused and kept.used is not None:
        return False
    if rule.set_aside and not kept.set_aside:
        return False
    return not rule.hashes or any(kept.hash.startswith(prefix) for prefix in rule.hashes)


def remove(kept: Kept) -> str:
    """Remove one artifact. "" when it is gone, else why it was left alone."""
    if foreign := _foreign_entries(kept):
        return f"it holds what is not ours: {', '.join(foreign[:3])}"
    lock = FileLock(kept.path.parent / f".lock-{kept.hash}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return "another process is making it"
    except OSError as error:
        return f"its store cannot be written ({error.strerror or error})"
    try:
        gone = kept.path.with_name(f".removing-{kept.hash}-{secrets.token_hex(4)}")
        kept.path.rename(gone)
        shutil.rmtree(gone)
        if not kept.set_aside:
            kept.path.with_name(f".used-{kept.hash}").unlink(missing_ok=True)
    except OSError as error:
        return f"it cannot be removed ({error.strerror or error})"
    finally:
        lock.release()
    return ""


def _foreign_entries(kept: Kept) -> list[str]:
    """Entries that the manifest does not name; where nothing but files and their directories may be."""
    known = {MANIFEST, *kept.manifest.files}
    directories = {parent.as_posix() for name in known for parent in Path(name).parents}
    found = []
    for entry in sorted(kept.path.rglob("*")):
        name = entry.relative_to(kept.path).as_posix()
        is_ours = name in (directories if entry.is_dir() and not entry.is_symlink() else known)
        if entry.is_symlink() or not is_ours:
            found.append(name)
    return found
