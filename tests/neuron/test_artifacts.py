"""The artifact store: equal keys load, other keys compile beside, crashes and races leave nothing wrong behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.neuron.artifact_starts import Target, config_of, start
from vllm.artifacts import find as artifacts
from vllm.artifacts import fingerprint
from vllm.artifacts import manifest as artifact_manifest
from vllm.artifacts import store as artifact_store
from vllm.artifacts.find import ArtifactError, artifact_key, diff_keys
from vllm.artifacts.manifest import DamagedArtifact, Manifest, verify
from vllm.artifacts.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("private_caches")


# Hit and miss.


def test_the_second_start_compiles_nothing(checkpoint, target):
    first, second = start(checkpoint, target), start(checkpoint, target)
    assert (first.hit, second.hit, target.compiled) == (False, True, 1)
    assert first.directory == second.directory == checkpoint / "neuron-compiled-artifacts" / first.info.hash
    assert (second.directory / "programs" / "decode_128.bin").read_bytes() == b"program"
    assert [path for path in first.directory.parent.iterdir() if path.name.startswith(".tmp")] == []


def test_a_warm_start_reads_no_weights(checkpoint, target, monkeypatch):
    start(checkpoint, target)
    read = []
    monkeypatch.setattr(fingerprint, "sha256", lambda file, *_: read.append(file) or "")
    assert start(checkpoint, target).hit
    assert read == []


def test_a_file_changed_a_moment_ago_is_read_again(checkpoint, target, monkeypatch):
    monkeypatch.setattr(fingerprint, "CLOCK_GRANULARITY_SECONDS", 3600.0)
    counts = []
    fingerprint.fingerprint([checkpoint / "model.safetensors"], counts.append)
    fingerprint.fingerprint([checkpoint / "model.safetensors"], counts.append)
    assert counts == [8000, 8000]


def test_a_changed_weight_misses_even_with_its_old_times(checkpoint, target):
    weights = checkpoint / "model.safetensors"
    before = weights.stat()
    first = start(checkpoint, target)
    weights.write_bytes(b"Weights " * 1000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    second = start(checkpoint, target)
    assert not second.hit
    assert second.directory != first.directory
    assert (first.directory / "manifest.json").exists()
    assert [line.split(":")[0] for line in second.info.diff] == ["weights.model.safetensors"]


def test_a_copy_of_the_checkpoint_hits(checkpoint, target, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "store"))
    start(checkpoint, target)
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert start(tmp_path / "elsewhere", target).hit
    assert target.compiled == 1


def test_a_renamed_gguf_file_hits_and_its_artifacts_lie_beside_it(tmp_path, target, monkeypatch):
    first = tmp_path / "a.gguf"
    first.write_bytes(b"GGUF")
    opened = start(first, target)
    assert opened.directory.parent == tmp_path / "neuron-compiled-artifacts"
    first.rename(tmp_path / "b.gguf")
    assert start(tmp_path / "b.gguf", target).hit


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_model_len": 512}, "neuron_config.seq_len: 1024 in the artifact, 512 needed"),
        ({"dtype": "float32"}, "dtype: 'auto' in the artifact, 'float32' needed"),
        (
            {"override_neuron_config": {"enable_bucketing": False}},
            "neuron_config.enable_bucketing: True in the artifact, False needed",
        ),
        (
            {"override_neuron_config": {"token_generation_buckets": [1024]}},
            "buckets.token_generation: [128, 256, 512, 1024] in the artifact, [1024] needed",
        ),
    ],
)
def test_other_settings_compile_beside_and_say_how_they_differ(options, line, checkpoint, target):
    first, second = start(checkpoint, target), start(checkpoint, target, **options)
    assert (second.hit, target.compiled) == (False, 2)
    assert first.directory.parent == second.directory.parent
    assert line in second.info.diff
    assert str(first.directory) in second.info.reason
    assert start(checkpoint, target).hit and start(checkpoint, target, **options).hit


def test_another_compiler_misses(checkpoint, target):
    start(checkpoint, target)
    target.layout = 2
    assert start(checkpoint, target).info.diff == ["compiler.layout: 1 in the artifact, 2 needed"]


def test_no_compile_refuses_with_the_difference(checkpoint, target):
    with pytest.raises(ArtifactError, match="there is no artifact in"):
        start(checkpoint, target, compile=False)
    start(checkpoint, target)
    assert start(checkpoint, target, compile=False).hit
    with pytest.raises(ArtifactError, match=r"--no-compile.*\n  buckets.*\n  buckets.*\n  kv_cache.num_blocks: 160 "):
        start(checkpoint, target, compile=False, max_model_len=512)
    assert target.compiled == 1


def test_keys_hold_json_and_no_paths(checkpoint, target):
    quantized = checkpoint / "quantized"
    quantized.mkdir()
    (quantized / "model.safetensors").write_bytes(b"q")
    override = {"quantized": True, "quantized_checkpoints_path": str(quantized)}
    key = artifact_key(config_of(checkpoint, override_neuron_config=override), target)
    assert str(checkpoint) not in json.dumps(key)
    assert list(key["quantized_weights"]) == ["model.safetensors"]


def test_dummy_weights_differ_by_seed(checkpoint, target):
    keys = [artifact_key(config_of(checkpoint, load_format="dummy", seed=seed), target) for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_diff_lines():
    found = {"a": {"b": 1, "c": {}}, "same": [1], "gone": None}
    needed = {"a": {"b": 2, "d": "x" * 100}, "same": [1]}
    assert diff_keys(found, needed) == [
        "a.b: 1 in the artifact, 2 needed",
        "a.c: {} in the artifact, nothing needed",
        f"a.d: nothing in the artifact, {repr('x' * 100)[:57]}... needed",
        "gone: None in the artifact, nothing needed",
    ]


def test_a_section_that_is_missing_is_one_line():
    needed = {"model": 1, "draft": {"weights": {"a": 1, "b": 2}, "method": "eagle"}}
    assert diff_keys({"model": 1}, needed) == ["draft: nothing in the artifact, a section of method, weights needed"]


# Places.


def test_a_named_artifact_loads_only_when_it_matches(checkpoint, target, tmp_path, monkeypatch):
    made = start(checkpoint, target).directory
    named = tmp_path / "named"
    shutil.copytree(made, named)
    shutil.rmtree(made)
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(named))
    assert start(checkpoint, target).directory == named
    other = start(checkpoint, target, max_model_len=512)
    assert not other.hit
    assert other.directory.parent == named
    assert "neuron_config.seq_len: 1024 in the artifact, 512 needed" in other.info.diff
    assert start(checkpoint, target, max_model_len=512).hit
    assert start(checkpoint, target).directory == named


def test_a_named_directory_is_a_store(checkpoint, target, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "store"))
    opened = start(checkpoint, target)
    assert opened.directory == tmp_path / "store" / opened.info.hash
    assert not (checkpoint / "neuron-compiled-artifacts").exists()


def test_artifacts_of_other_integrations_are_not_trusted(checkpoint, target, tmp_path, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.pt").write_bytes(b"")
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(foreign))
    with pytest.raises(ArtifactError, match="nothing says what settings it fits"):
        start(checkpoint, target, compile=False)


def _forbid(monkeypatch, *directories: Path) -> None:
    """Make directories read-only, also for a superuser."""
    really = ArtifactStore.is_writable
    monkeypatch.setattr(ArtifactStore, "is_writable", lambda self: self.directory not in directories and really(self))


def test_where_the_checkpoint_is_read_only_the_cache_takes_over(checkpoint, target, tmp_path, monkeypatch):
    _forbid(monkeypatch, checkpoint / "neuron-compiled-artifacts")
    first, second = start(checkpoint, target), start(checkpoint, target)
    assert first.directory.parent == tmp_path / "cache" / "neuron-compiled-artifacts"
    assert (second.hit, target.compiled) == (True, 1)


def test_read_only_stores_can_be_read(checkpoint, target, tmp_path, monkeypatch):
    store = tmp_path / "store"
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(store))
    start(checkpoint, target)
    _forbid(monkeypatch, store)
    assert start(checkpoint, target).hit
    with pytest.raises(ArtifactError, match="Set NEURON_COMPILED_ARTIFACTS"):
        start(checkpoint, target, max_model_len=512)


def test_directories_are_private(checkpoint, target):
    directory = start(checkpoint, target).directory
    for path in (directory, directory / "programs", directory.parent):
        assert path.stat().st_mode & 0o777 == 0o700


# Damage.


@pytest.mark.parametrize("file", ["weights.bin", "programs/decode_128.bin", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_artifact_is_set_aside_and_made_anew(file, harm, checkpoint, target, caplog):
    directory = start(checkpoint, target).directory
    _harm(directory / file, harm)
    with pytest.raises(DamagedArtifact):
        verify(directory)
    with pytest.raises(ArtifactError, match="--no-compile"):
        start(checkpoint, target, compile=False)
    again = start(checkpoint, target)
    assert (again.hit, again.directory, target.compiled) == (False, directory, 2)
    assert len(list(directory.parent.glob(f"{directory.name}.damaged-*"))) == 1
    assert start(checkpoint, target).hit


def _harm(file: Path, harm: str) -> None:
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    elif harm == "truncate":
        file.write_bytes(content[:-2])
    else:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_damage_names_every_file(checkpoint, target):
    directory = start(checkpoint, target).directory
    _harm(directory / "weights.bin", "truncate")
    _harm(directory / "programs" / "decode_128.bin", "flip")
    with pytest.raises(DamagedArtifact) as caught:
        verify(directory)
    assert "weights.bin: has 255998 bytes instead of 256000" in str(caught.value)
    assert "programs/decode_128.bin: its content is not what was written" in str(caught.value)


def test_an_altered_key_is_damage(checkpoint, target):
    directory = start(checkpoint, target).directory
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["key"]["dtype"] = "float32"
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match="the key does not have the hash"):
        verify(directory)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../b"])
def test_a_manifest_cannot_point_outside(name, checkpoint, target):
    directory = start(checkpoint, target).directory
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"].pop("weights.bin")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match="no path inside"):
        verify(directory)


def test_beyond_the_budget_samples_are_held_against_the_manifest(checkpoint, target, monkeypatch):
    directory = start(checkpoint, target).directory
    monkeypatch.setattr(artifact_manifest, "WHOLE_BYTES", 10)
    read = []
    really = artifact_manifest.sha256
    monkeypatch.setattr(artifact_manifest, "sha256", lambda file: read.append(file.name) or really(file))
    verify(directory)
    assert read == ["decode_128.bin"]
    _harm(directory / "weights.bin", "flip")
    with pytest.raises(DamagedArtifact, match="content is not what was written"):
        verify(directory)


def test_samples_reach_from_the_first_byte_to_the_last(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(300 * 2**20)
    before = artifact_manifest.sampled_sha256(file)
    for offset in (0, 300 * 2**20 - 1):
        with file.open("r+b") as stream:
            stream.seek(offset)
            stream.write(b"x")
        after = artifact_manifest.sampled_sha256(file)
        assert after != before
        before = after


def test_the_manifest_is_plain(checkpoint, target):
    directory = start(checkpoint, target).directory
    manifest = json.loads((directory / "manifest.json").read_text())
    assert set(manifest) == {"format", "hash", "key", "files", "created", "compile_seconds", "tool"}
    assert set(manifest["files"]) == {"weights.bin", "programs/decode_128.bin"}
    assert manifest["files"]["weights.bin"]["size"] == 256_000
    assert manifest["hash"] == directory.name
    assert manifest["key"]["neuron_config"]["batch_size"] == 4
    assert Manifest.read(directory).files["weights.bin"].size == 256_000


# Crashes and races. Children run this module's `main`.


def main(checkpoint: str, log: str, behaviour: str) -> None:
    """Start once in a process of its own, noting each compilation in `log`."""

    class Noting(Target):
        @classmethod
        def compile(cls, config, directory, progress):
            with Path(log).open("a") as stream:
                stream.write("compiled\n")
            (directory / "half").write_bytes(b"half")
            if behaviour == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if behaviour == "fail":
                raise RuntimeError("the compiler gave up")
            time.sleep(0.5)
            (directory / "half").unlink()
            super().compile(config, directory, progress)

    opened = start(Path(checkpoint), Noting)
    print(json.dumps({"hit": opened.hit, "waited": opened.info.waited_seconds, "directory": str(opened.directory)}))


def _child(checkpoint: Path, log: Path, behaviour: str = "") -> subprocess.Popen:
    code = f"from tests.neuron.test_artifacts import main; main({str(checkpoint)!r}, {str(log)!r}, {behaviour!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_starts_at_once_compile_once(checkpoint, tmp_path):
    log = tmp_path / "log"
    children = [_child(checkpoint, log) for _ in range(2)]
    results = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    reports = [json.loads(out.splitlines()[-1]) for out, _ in results]
    assert sorted(report["hit"] for report in reports) == [False, True]
    assert reports[0]["directory"] == reports[1]["directory"]
    assert log.read_text() == "compiled\n"


def test_a_second_start_waits_says_so_and_loads(checkpoint, target, tmp_path, caplog):
    child = _child(checkpoint, tmp_path / "log")
    while not (tmp_path / "log").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    with caplog.at_level("INFO"):
        opened = start(checkpoint, target)
    _, err = child.communicate()
    assert child.returncode == 0, err
    assert (opened.hit, target.compiled) == (True, 0)
    assert opened.info.waited_seconds > 0
    assert "another process is making the artifact" in caplog.text


@pytest.mark.parametrize(
    ("owner", "name", "number", "message"),
    [
        (fcntl, "flock", errno.ENOLCK, r"cannot be locked .*No locks available.*Lustre with -o flock"),
        (Path, "rename", errno.ENOSYS, r"nothing can be made in .*buckets that are mounted as files"),
    ],
    ids=["locks", "renames"],
)
def test_storage_that_cannot_hold_artifacts_is_found_out_before_compiling(
    checkpoint, target, monkeypatch, owner, name, number, message
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(ArtifactError, match=message):
        start(checkpoint, target)
    assert target.compiled == 0
    assert _remains(checkpoint) == []


def _remains(checkpoint: Path) -> list[Path]:
    return list((checkpoint / "neuron-compiled-artifacts").glob(".tmp-*"))


def test_what_a_killed_process_left_is_removed_and_redone(checkpoint, target, tmp_path):
    child = _child(checkpoint, tmp_path / "log", "die")
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (remains,) = _remains(checkpoint)
    assert (remains / "content" / "half").exists()
    opened = start(checkpoint, target)
    assert (opened.hit, target.compiled) == (False, 1)
    assert _remains(checkpoint) == []
    assert not (opened.directory / "half").exists()


def test_a_compiler_that_fails_leaves_nothing(checkpoint, target, tmp_path):
    child = _child(checkpoint, tmp_path / "log", "fail")
    _, err = child.communicate()
    assert child.returncode == 1
    assert "the compiler gave up" in err
    assert _remains(checkpoint) == []
    assert not start(checkpoint, target).hit


def _leave_remains(store: ArtifactStore, name: str, maker: dict | None) -> Path:
    scratch = store.directory / f".tmp-{name}-1-abcd"
    (scratch / "content").mkdir(parents=True)
    if maker is not None:
        (scratch / "making.json").write_text(json.dumps(maker))
    return scratch


@pytest.mark.parametrize(
    ("maker", "removed"),
    [
        ({"boot_id": "other boot"}, True),
        ({"host": "other host"}, True),
        ({"host": "other host", "boot_id": "other boot"}, False),
        ({"host": "other host", "boot_id": "other boot", "started": 0}, True),
        (None, False),
    ],
    ids=["before a restart", "another container", "another machine", "another machine, long ago", "not ours"],
)
def test_remains_are_removed_only_when_they_are_ours_and_dead(maker, removed, tmp_path):
    store = ArtifactStore(tmp_path)
    scratch = _leave_remains(store, "name", None if maker is None else {**artifact_store._this_maker(), **maker})
    other = _leave_remains(store, "othername", artifact_store._this_maker())
    with store.locked("name"):
        store.remove_remains("name")
    assert scratch.exists() is not removed
    assert other.exists()


def test_a_checkpoint_in_an_installed_package_keeps_no_artifacts(checkpoint, target, tmp_path):
    """What is beside it already is found all the same."""
    installed = tmp_path / "lib" / "site-packages" / "models" / "tiny"
    shutil.copytree(checkpoint, installed)
    made = start(installed, target).directory
    assert made.is_relative_to(tmp_path / "cache") and not (installed / artifacts.STORE_NAME).exists()
    shutil.move(made.parent, installed / artifacts.STORE_NAME)
    assert start(installed, target).directory.is_relative_to(installed)


def test_nothing_in_the_loader_deletes_artifacts(checkpoint, target):
    made = [start(checkpoint, target, max_model_len=length).directory for length in (128, 256, 512)]
    start(checkpoint, target, max_model_len=256)
    assert all((directory / "manifest.json").exists() for directory in made)
    assert made[0].parent.name == artifacts.STORE_NAME
