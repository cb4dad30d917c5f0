"""Artifacts of others are not used, damaged manifests are set aside, and full disks are named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.neuron.artifact_starts import start
from vllm.artifacts import find as artifacts
from vllm.artifacts import fingerprint
from vllm.artifacts.find import ArtifactInfo, Rejected, diff_keys
from vllm.artifacts.keeper import kept_in
from vllm.artifacts.manifest import MAX_JSON_BYTES, ArtifactError, DamagedArtifact, Manifest
from vllm.artifacts.ownership import privacy_fault, write_fault, write_fault_within
from vllm.artifacts.store import ArtifactStore, FullStore

pytestmark = pytest.mark.usefixtures("private_caches")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only a superuser can give files away")
NOBODY = 65534


# Owners and modes.


@contextmanager
def user(uid: int) -> Iterator[None]:
    """Be another user for the length of a block."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777], ids=oct)
@pytest.mark.parametrize("place", ["store", "artifact", "programs"])
def test_what_others_may_write_is_not_used(mode, place, checkpoint, target, tmp_path, caplog):  # S5
    made = start(checkpoint, target).directory
    {"store": made.parent, "artifact": made, "programs": made / "programs"}[place].chmod(mode)
    if place == "programs":
        made.chmod(0o755)
    again = start(checkpoint, target)
    assert (again.hit, target.compiled) == (False, 2)
    assert f"can be written by others (mode {mode:04o})" in caplog.text
    assert "chmod -R go-w" in caplog.text and "NEURON_COMPILED_ARTIFACTS" in caplog.text
    if place == "store":
        assert again.directory.parent == tmp_path / "cache" / "neuron-compiled-artifacts"
    else:
        assert again.directory == made
        assert len(list(made.parent.glob(f"{made.name}.damaged-*"))) == 1
    assert start(checkpoint, target).hit


@as_root
@pytest.mark.parametrize("place", ["", "manifest.json", "weights.bin", "programs"])
def test_what_belongs_to_others_is_not_used(place, checkpoint, target, caplog):  # S5
    made = start(checkpoint, target).directory
    os.chown(made / place, NOBODY, NOBODY)
    again = start(checkpoint, target)
    assert (again.hit, again.directory, target.compiled) == (False, made, 2)
    assert f"{made / place} belongs to user nobody (65534), not to user root (0)" in caplog.text


@as_root
def test_a_store_of_others_is_neither_read_nor_written(checkpoint, target, tmp_path, monkeypatch):  # S5
    store = tmp_path / "store"
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(store))
    start(checkpoint, target)
    os.chown(store, NOBODY, NOBODY)
    before = sorted(store.iterdir())
    with pytest.raises(ArtifactError, match=r"no place for artifacts can be trusted: .* belongs to user nobody.*chown"):
        start(checkpoint, target)
    assert sorted(store.iterdir()) == before


@as_root
def test_the_superusers_artifacts_serve_everybody(checkpoint, target, open_directory, monkeypatch):
    """As in an image that was filled as root, whose server runs as somebody else."""
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(open_directory / "store"))
    made = start(checkpoint, target).directory
    for path in [made.parent, *made.parent.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with user(NOBODY):
        opened = artifacts._open_found([made], ArtifactInfo(made.name), Rejected())
    assert opened == made


@as_root
def test_a_store_that_cannot_be_entered_is_passed_over(open_directory):
    (open_directory / "closed").mkdir(mode=0o700)
    with user(NOBODY):
        assert "cannot be used: Permission denied" in ArtifactStore(open_directory / "closed").fault()
        assert "cannot be used: Permission denied" in ArtifactStore(open_directory / "closed" / "store").fault()


def test_modes_say_nothing_where_nobody_else_can_enter(checkpoint, target):
    """A umask of 002 leaves files that a group may write, in a directory that it cannot enter."""
    made = start(checkpoint, target).directory
    (made / "weights.bin").chmod(0o664)
    assert start(checkpoint, target).hit
    made.chmod(0o750)
    assert not start(checkpoint, target).hit


@as_root
def test_a_group_of_one_may_write(open_directory):
    """As where a umask of 002 goes with a group for each user: Amazon Linux, Fedora, Debian."""
    directory = open_directory / "d"
    directory.mkdir()
    os.chown(directory, 1, 1)
    directory.chmod(0o775)
    with user(1):
        assert write_fault(directory) == ""
    os.chown(directory, 1, 2)
    with user(1):
        assert "can be written by others" in write_fault(directory)
    directory.chmod(0o755)
    os.chown(directory, 0, 0)
    directory.chmod(0o775)
    assert "can be written by others" in write_fault(directory), "many may be in the superuser's group"


def test_links_lead_to_what_nobody_else_can_replace(tmp_path):
    """As in the cache of a hub, whose snapshots are links to blobs."""
    blobs, artifact = tmp_path / "blobs", tmp_path / "artifact"
    blobs.mkdir(mode=0o700)
    artifact.mkdir(mode=0o700)
    (blobs / "weights").write_bytes(b"")
    link = artifact / "weights.bin"
    link.symlink_to(blobs / "weights")
    assert write_fault_within(artifact, [link]) == ""
    (blobs / "weights").chmod(0o666)
    assert "can be written by others" in write_fault_within(artifact, [link])
    (blobs / "weights").chmod(0o644)
    blobs.chmod(0o777)
    assert "is a link" in write_fault_within(artifact, [link])
    blobs.chmod(0o1777)
    assert write_fault_within(artifact, [link]) == ""


def test_privacy_is_more_than_that(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir(mode=0o755)
    assert write_fault(directory) == ""
    assert "nobody else may enter (mode 0700); it has mode 0755" in privacy_fault(directory)
    directory.chmod(0o700)
    assert privacy_fault(directory) == ""
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert privacy_fault(link)


def test_remembered_hashes_of_others_are_not_believed(checkpoint, target, tmp_path):
    """Whoever could write them could pass one checkpoint's artifact off as another's."""
    first = start(checkpoint, target)
    notes = tmp_path / "cache" / "fingerprints"
    for note in notes.iterdir():
        note.write_text(json.dumps({**json.loads(note.read_text()), "sha256": "0" * 64}))
    assert start(checkpoint, target).info.hash != first.info.hash, "our own notes are believed"
    notes.chmod(0o777)
    assert start(checkpoint, target).info.hash == first.info.hash


# Manifests.


def _links_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _links_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _is_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _is_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _is_huge(path: Path) -> None:
    with path.open("rb+") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)


def _changes(**values):
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


BROKEN = {
    "deep": lambda path: path.write_text("[" * 100000),
    "deep but readable": _changes(key=json.loads('{"a":' * 90 + "1" + "}" * 90)),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "not an object": lambda path: path.write_text("[]"),
    "empty": lambda path: path.write_text(""),
    "a number of many digits": lambda path: path.write_text("1" * 5000),
    "files as a list": _changes(files=[]),
    "a file as a number": _changes(files={"weights.bin": 1}),
    "a size that is none": _changes(files={"a": {"size": 1.5, "sha256": "0" * 64, "sampled_sha256": "0" * 64}}),
    "a huge size": _changes(files={"a": {"size": 2**200, "sha256": "0" * 64, "sampled_sha256": "0" * 64}}),
    "a name with a NUL": _changes(files={"\0": {"size": 0, "sha256": "0" * 64, "sampled_sha256": "0" * 64}}),
    "a name that is no text": _changes(files={"\ud800": {"size": 0, "sha256": "0" * 64, "sampled_sha256": "0" * 64}}),
    "a key as text": _changes(key="x"),
    "infinite seconds": _changes(compile_seconds=float("inf")),
    "a format as a list": _changes(format=[1]),
    "a further name": _changes(more=1),
    "a link to itself": _links_to_itself,
    "a device": _links_to_a_device,
    "a pipe": _is_a_pipe,
    "a directory": _is_a_directory,
    "huge": _is_huge,
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_whatever_is_wrong_with_a_manifest_it_is_set_aside(damage, checkpoint, target):  # S6
    made = start(checkpoint, target).directory
    damage(made / "manifest.json")
    with pytest.raises(DamagedArtifact):
        Manifest.read(made)
    again = start(checkpoint, target)
    assert (again.hit, again.directory, target.compiled) == (False, made, 2)
    assert len(list(made.parent.glob(f"{made.name}.damaged-*"))) == 1
    assert start(checkpoint, target).hit


def test_a_pipe_among_the_files_is_not_waited_for(checkpoint, target):
    made = start(checkpoint, target).directory
    (made / "weights.bin").unlink()
    os.mkfifo(made / "weights.bin")
    assert not start(checkpoint, target).hit


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """A manifest with some of its values replaced, or of its bytes."""
    if draw(st.booleans()):
        found = json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            inner = found
            while isinstance(inner, dict) and inner:
                name = draw(st.sampled_from(sorted(inner)))
                if draw(st.booleans()) or not isinstance(inner[name], dict):
                    inner[name] = draw(VALUES)
                    break
                inner = inner[name]
        return json.dumps(found).encode("utf-8", "surrogatepass")
    start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
    return text[:start] + draw(st.binary(max_size=40)) + text[start + length :]


def test_no_manifest_is_an_error_of_the_start(checkpoint, target):  # S6
    made = start(checkpoint, target).directory
    file = made / "manifest.json"
    whole, key = file.read_bytes(), Manifest.read(made).key

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(damaged(whole))
    def holds(text: bytes) -> None:
        file.write_bytes(text)
        assert artifacts._open_found([made], ArtifactInfo(made.name), Rejected()) in (None, made)
        for _, manifest in ArtifactStore(made.parent).manifests():
            diff_keys(manifest.key, key)
        kept_in(made.parent)

    holds()


def test_broken_notes_of_hashes_are_made_anew(checkpoint, target, tmp_path):
    first = start(checkpoint, target)
    for text in ("[" * 100000, "[]", '{"sha256": 1}', "\0"):
        for note in (tmp_path / "cache" / "fingerprints").iterdir():
            note.write_text(text)
        assert start(checkpoint, target).info.hash == first.info.hash


# Full disks.


def _fill_the_disk_of(target, full: Path, monkeypatch, error: Exception | None = None) -> None:
    """Let compiling fail in `full` as it does where no room is left."""
    really = target.compile.__func__

    def compile(cls, config, directory, progress):
        really(cls, config, directory, progress)
        if full in directory.parents:
            raise error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target, "compile", classmethod(compile))


def test_where_the_disk_is_full_the_next_place_is_tried(checkpoint, target, tmp_path, monkeypatch, caplog):  # M14
    _fill_the_disk_of(target, checkpoint, monkeypatch)
    opened = start(checkpoint, target)
    assert opened.directory.parent == tmp_path / "cache" / "neuron-compiled-artifacts"
    assert f"there is no room in {checkpoint / 'neuron-compiled-artifacts'}: " in caplog.text
    assert list((checkpoint / "neuron-compiled-artifacts").glob(".tmp-*")) == []
    assert start(checkpoint, target).hit


def test_a_full_disk_is_named_with_bytes_and_a_remedy(checkpoint, target, tmp_path, monkeypatch):  # M14
    target.num_bytes = 3 * 2**20
    store = tmp_path / "store"
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(store))
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    except OSError as cause:
        wrapped = RuntimeError("the compiler failed")
        wrapped.__cause__ = cause
    _fill_the_disk_of(target, store, monkeypatch, wrapped)
    with pytest.raises(
        ArtifactError,
        match=rf"no room in {store}: \d+\.\d MiB are free, the artifact takes 3\.0 MiB\. .* NEURON_COMPILED_ARTIFACTS",
    ):
        start(checkpoint, target)


def test_too_little_room_is_found_out_before_compiling(checkpoint, target, tmp_path, monkeypatch):  # M14
    target.num_bytes = 2**60
    with pytest.raises(ArtifactError, match=r"no room in .*checkpoint.*; .*no room in .*cache.*NEURON_COMPILED"):
        start(checkpoint, target)
    assert target.compiled == 0
    with pytest.raises(FullStore, match=r"are free, the artifact takes 1099511627776\.0 MiB"):
        ArtifactStore(tmp_path).check_room(2**60)


def test_other_failures_of_a_compiler_stay_what_they_are(checkpoint, target, monkeypatch):
    _fill_the_disk_of(target, checkpoint, monkeypatch, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        start(checkpoint, target)


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert ArtifactStore(tmp_path / "none").fault() == ""
    assert fingerprint._read_note(tmp_path / "none" / "note.json") == {}
