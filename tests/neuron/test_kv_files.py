"""KV blocks in files: whole or not at all, private, bounded, shared, and never believed unseen."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from vllm.kv.files import HEADER_BYTES, KVFiles

BLOCK = 4096
FILE = HEADER_BYTES + BLOCK


def key(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def content(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, BLOCK).astype(np.uint8)


def opened(directory: Path, max_files: int = 100, identity: str = "a") -> KVFiles:
    return KVFiles(directory, identity, BLOCK, max_files * FILE)


def filled(directory: Path, count: int, **options: object) -> Path:
    """Save blocks 0 to count - 1, and close; the directory of the files."""
    files = opened(directory, **options)  # type: ignore[arg-type]
    for i in range(count):
        files.save(key(i), content(i))
    files.close()
    return files.directory


def loaded(files: KVFiles, i: int) -> bool:
    """Whether block i is there; if so, it is what was saved."""
    out = np.zeros(BLOCK, np.uint8)
    files.news.clear()
    files.start(i, key(i), out)
    assert files.news.wait(60)
    (found,) = files.poll().values()
    assert not found or (out == content(i)).all()
    return found


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    files = opened(tmp_path)
    assert sorted(files.hashes()) == sorted(key(i) for i in range(5))
    assert all(loaded(files, i) for i in range(5))
    assert not loaded(files, 5)
    files.close()


def test_what_is_still_being_written_can_be_loaded(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.save(key(1), content(1))
    assert loaded(files, 1)
    files.close()


def test_another_identity_finds_nothing(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    files = opened(tmp_path, identity="b")
    assert files.hashes() == [] and not loaded(files, 0)
    files.close()


@pytest.mark.parametrize("damage", ["content", "header", "cut", "longer", "empty", "renamed"])
def test_a_damaged_file_is_removed_and_not_used(tmp_path: Path, damage: str) -> None:
    directory = filled(tmp_path, 2)
    path = directory / key(0).hex()
    whole = bytearray(path.read_bytes())
    if damage == "content":
        whole[-1] ^= 1
    elif damage == "header":
        whole[HEADER_BYTES - 1] ^= 1
    elif damage == "renamed":
        whole = bytearray((directory / key(1).hex()).read_bytes())
    path.write_bytes({"cut": whole[:-1], "longer": whole + b"x", "empty": b""}.get(damage, bytes(whole)))
    files = opened(tmp_path)
    assert not loaded(files, 0)
    assert not path.exists() and key(0) not in files
    assert loaded(files, 1)
    files.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    directory = filled(tmp_path, 1)
    elsewhere = tmp_path / "elsewhere"
    (directory / key(0).hex()).rename(elsewhere)
    files = opened(tmp_path)
    (directory / key(0).hex()).symlink_to(elsewhere)
    assert not loaded(files, 0)
    assert elsewhere.exists()
    files.close()


def test_nobody_else_may_read(tmp_path: Path) -> None:
    directory = filled(tmp_path / "made" / "here", 2)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    directory.chmod(0o750)
    with pytest.raises(PermissionError, match="0750"):
        opened(tmp_path / "made" / "here")


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    directory = filled(tmp_path, 4, max_files=4)
    for age, i in enumerate([3, 2, 1, 0]):
        os.utime(directory / key(i).hex(), (1000 + age, 1000 + age))
    files = opened(tmp_path, max_files=4)
    assert loaded(files, 3)
    for i in (10, 11):
        files.save(key(i), content(i))
    files.close()
    assert {path.name for path in directory.iterdir()} == {key(i).hex() for i in (0, 3, 10, 11)}
    assert set(files.take_forgotten()) == {key(1), key(2)}
    assert key(1) not in files


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    for i in range(8):
        (one, other)[i % 2].save(key(i), content(i))
        (one, other)[1 - i % 2].save(key(i), content(i))
    one.close()
    other.close()
    assert len(list(one.directory.iterdir())) == 8
    one, other = opened(tmp_path), opened(tmp_path)
    assert all(loaded(files, i) for files in (one, other) for i in range(8))
    (one.directory / key(0).hex()).unlink()
    assert not loaded(other, 0) and key(0) not in other
    one.close()
    other.close()


def test_clear_leaves_nothing(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for i in range(20):
        files.save(key(i), content(i))
    files.clear()
    assert files.hashes() == [] and not loaded(files, 0)
    files.close()
    assert list(files.directory.iterdir()) == []


def test_a_write_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = opened(tmp_path)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    files.save(key(0), content(0))
    files.close()
    assert files.take_forgotten() == [key(0)] and key(0) not in files
    assert list(files.directory.iterdir()) == []


def test_a_full_disk_is_one_line_and_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # S14
    files = opened(tmp_path)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for i in range(47):
        files.save(key(i), content(i))
    files.close()
    lines = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert len(lines) == 2
    assert "No space left on device" in lines[0]
    assert lines[1].endswith("47 times in all")
    assert sorted(files.take_forgotten()) == sorted(key(i) for i in range(47))
