"""KV blocks in files: the part of the KV store that outlives the process.

    <directory>/kv-<identity>/           one model's blocks of one layout; mode 0700
    <directory>/kv-<identity>/<hash>     one block, mode 0600: the header, then the block's bytes
    <directory>/kv-<identity>/.new-...   a block being written

    header: 8 bytes of magic, 32 of the prefix's hash, 32 of the content's SHA-256

A block is written under another name and renamed, so that a reader sees all of it or nothing; what a crash tears shows
in the SHA-256, which every load checks. A file that is not what it says is removed. Several processes may share a
directory: each finds what was there when it started and what it wrote itself, and copes with files that others removed.

The bytes of all files are bounded: a process that would exceed the bound, or wrote a sixteenth of it since it last
looked, counts again and removes the least recently used (by modification time, which a load sets), whosever they are.
Writing and reading happen on a thread each. Blocks that are not written yet are held in memory, at most
`MAX_PENDING_BYTES` of them; blocks beyond are not saved.

Whoever can read the files can learn what prompts said, and whoever can write them can change answers: so they belong to
one user, and a directory that others may enter is refused. The hash guards against damage, not against that user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np

from vllm.artifacts.ownership import privacy_fault
from vllm.device.model_input import ByteArray
from vllm.logger import RecurringFault, init_logger
from vllm.sizes import MIB

logger = init_logger(__name__)

MAGIC = b"vllmkv01"
HEADER_BYTES = len(MAGIC) + 64
MAX_PENDING_BYTES = 256 * MIB
ABANDONED_SECONDS = 3600.0
_NAME = re.compile(r"[0-9a-f]{64}")
_NEW = ".new-"
GONE = "it is gone"


class KVFiles:
    """The blocks of one identity. All methods are called by one thread; the writer and the reader have their own."""

    def __init__(
        self,
        directory: str | Path,
        identity: str,
        block_bytes: int,
        max_bytes: int,
        news: threading.Event | None = None,
    ) -> None:
        """news: set when `poll` has something to tell.

        Raises PermissionError for a directory that is not this user's alone, OSError for one that cannot be made.
        """
        self.directory = Path(directory).expanduser() / f"kv-{identity}"
        self.block_bytes = block_bytes
        self.max_bytes = max_bytes
        _make_private(self.directory)
        self._unwritten = RecurringFault(logger, f"a KV block could not be written to {self.directory}")
        self._unusable = RecurringFault(logger, f"a KV block in {self.directory} is not used and removed")
        self._remove_abandoned()
        self._known: OrderedDict[bytes, None] = OrderedDict((bytes.fromhex(path.name), None) for path in self._oldest())
        self._written_since_count = self._num_bytes = 0
        self._forgotten: deque[bytes] = deque()
        self._pending: OrderedDict[bytes, ByteArray] = OrderedDict()
        self._wakes = threading.Condition()
        self._is_writing = False
        self._closing = False
        self._count()
        self.news = news or threading.Event()
        self._asked: queue.SimpleQueue[tuple[int, bytes, ByteArray] | None] = queue.SimpleQueue()
        self._answers: deque[tuple[int, bytes, str]] = deque()
        self._writer = threading.Thread(target=self._write_pending, name="kv-files-writer", daemon=True)
        self._reader = threading.Thread(target=self._read_asked, name="kv-files-reader", daemon=True)
        self._writer.start()
        self._reader.start()
        logger.info("%d KV blocks of %d bytes were found in %s", len(self._known), block_bytes, self.directory)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def save(self, key: bytes, data: ByteArray) -> None:
        if key in self._known:
            return
        with self._wakes:
            if (len(self._pending) + 1) * self.block_bytes > max(MAX_PENDING_BYTES, self.block_bytes):
                self._forgotten.append(key)
                return
            self._pending[key] = data.copy()
            self._wakes.notify()
        self._known[key] = None

    def start(self, ticket: int, key: bytes, out: ByteArray) -> None:
        with self._wakes:
            pending = self._pending.get(key)
        if pending is None:
            self._asked.put((ticket, key, out))
        else:
            out[:] = pending
            self._answer(ticket, key, "")

    def poll(self) -> dict[int, bool]:
        done: dict[int, bool] = {}
        for _ in range(len(self._answers)):
            ticket, key, fault = self._answers.popleft()
            done[ticket] = not fault
            if fault:
                self._known.pop(key, None)
        return done

    def hashes(self) -> list[bytes]:
        return list(self._known)

    def take_forgotten(self) -> list[bytes]:
        forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        for block_hash in forgotten:
            self._known.pop(block_hash, None)
        return forgotten

    def clear(self) -> None:
        with self._wakes:
            self._pending.clear()
            self._wakes.wait_for(lambda: not self._is_writing)
        self._known.clear()
        for path in self._oldest():
            path.unlink(missing_ok=True)

    def stats(self) -> dict[str, int]:
        return {"file_blocks": len(self._known), "file_bytes": len(self._known) * (HEADER_BYTES + self.block_bytes)}

    def close(self) -> None:
        """Write what is pending, answer what was asked, and end the threads."""
        with self._wakes:
            self._closing = True
            self._wakes.notify()
        self._asked.put(None)
        self._writer.join()
        self._reader.join()
        self._unwritten.end()
        self._unusable.end()

    def _answer(self, ticket: int, key: bytes, fault: str) -> None:
        self._answers.append((ticket, key, fault))
        self.news.set()

    def _read_asked(self) -> None:
        while (asked := self._asked.get()) is not None:
            ticket, key, out = asked
            path, fault = self._path(key), "it was not read"
            try:
                fault = self._read(path, key, out)
                if fault and fault != GONE:
                    self._unusable.note(f"{path.name}: {fault}")
                    path.unlink(missing_ok=True)
            except Exception:  # without an answer, a request would wait for ever
                logger.exception("the KV block %s could not be read", path)
            self._answer(ticket, key, fault)

    def _path(self, block_hash: bytes) -> Path:
        return self.directory / block_hash.hex()

    def _read(self, path: Path, block_hash: bytes, out: ByteArray) -> str:
        """Fill `out`; why it cannot be, "" if it could."""
        header = bytearray(HEADER_BYTES)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                size = os.fstat(descriptor).st_size
                if size != HEADER_BYTES + self.block_bytes:
                    return f"it has {size} bytes instead of {HEADER_BYTES + self.block_bytes}"
                file.readinto(header)
                num_read = file.readinto(out.data)
                os.utime(descriptor)
        except FileNotFoundError:
            return GONE
        except OSError as error:
            return str(error)
        if num_read != self.block_bytes or header != _header(block_hash, out):
            return "its content is not what was written"
        return ""

    def _write_pending(self) -> None:
        while True:
            with self._wakes:
                while not self._pending and not self._closing:
                    self._wakes.wait()
                if not self._pending:
                    return
                block_hash, data = next(iter(self._pending.items()))
                self._is_writing = True
            if not self._write(block_hash, data):
                self._forgotten.append(block_hash)
            with self._wakes:
                self._pending.pop(block_hash, None)
                self._is_writing = False
                self._wakes.notify_all()

    def _write(self, block_hash: bytes, data: ByteArray) -> bool:
        new = self.directory / f"{_NEW}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self._make_room()
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_header(block_hash, data))
                file.write(data.data)
            new.rename(self._path(block_hash))
        except Exception as error:  # without its thread, `clear` would wait for ever
            self._unwritten.note(error, exc_info=not isinstance(error, OSError))
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            return False
        self._num_bytes += HEADER_BYTES + self.block_bytes
        self._written_since_count += HEADER_BYTES + self.block_bytes
        return True

    def _make_room(self) -> None:
        """Remove the least recently used until another block fits."""
        room = self.max_bytes - HEADER_BYTES - self.block_bytes
        if self._num_bytes <= room and self._written_since_count <= self.max_bytes // 16:
            return
        self._count()
        for path in self._oldest():
            if self._num_bytes <= room:
                break
            path.unlink(missing_ok=True)
            self._num_bytes -= HEADER_BYTES + self.block_bytes
            self._forgotten.append(bytes.fromhex(path.name))

    def _count(self) -> None:
        self._num_bytes = len(self._oldest()) * (HEADER_BYTES + self.block_bytes)
        self._written_since_count = 0

    def _oldest(self) -> list[Path]:
        """Files of blocks, least recently used first."""
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                try:
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                except FileNotFoundError:
                    continue
        return [self.directory / name for _, name in sorted(found)]

    def _remove_abandoned(self) -> None:
        for path in self.directory.glob(f"{_NEW}*"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue


def _header(block_hash: bytes, data: ByteArray) -> bytes:
    return MAGIC + block_hash + hashlib.sha256(np.ascontiguousarray(data).data).digest()


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.mkdir(exist_ok=True, mode=0o700)
    if fault := privacy_fault(directory):
        raise PermissionError(f"KV blocks tell what prompts said: {fault}")
