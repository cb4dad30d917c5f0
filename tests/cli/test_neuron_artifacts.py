"""`vllm neuron compile`, `inspect` and `cache` on real artifacts of the `cpu` and `null` targets."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tiny import make_checkpoint
from vllm import LLM
from vllm.entrypoints.cli.main import main

SHAPE = ("--max-model-len", "64", "--max-num-seqs", "2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("artifacts") / "model")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "store"


def run(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["neuron", *map(str, words)])
    output = capsys.readouterr()
    return status, output.out, output.err


def run_json(capsys, *words):
    status, out, _ = run(capsys, *words, "--json")
    return status, json.loads(out)


def compiled(capsys, checkpoint, *words) -> Path:
    status, found = run_json(capsys, "compile", "--model", checkpoint, *SHAPE, *(words or ("--device", "cpu")))
    assert status == 0
    return Path(found["artifact"])


# compile


def test_compile_then_hit(capsys, checkpoint, store):
    words = ("compile", "--model", checkpoint, "--device", "cpu", *SHAPE)
    status, missing = run_json(capsys, *words, "--dry-run")
    assert (status, missing["artifact"], missing["hit"]) == (4, None, False)
    assert not store.exists()
    status, out, err = run(capsys, *words)
    assert status == 0
    assert out.startswith(f"compiled {store / missing['hash']} in ")
    assert "100 %" in err
    status, found = run_json(capsys, *words)
    assert (status, found["hit"], found["hash"]) == (0, True, missing["hash"])
    assert run(capsys, *words, "--dry-run")[1] == f"already there: {store / missing['hash']}\n"


def test_what_was_compiled_is_what_is_loaded(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint)
    llm = LLM(model=str(checkpoint), device="cpu", max_model_len=64, max_num_seqs=2, compile=False)
    llm.generate("a")
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == [artifact.name]


def test_dry_run_says_how_the_nearest_differs(capsys, checkpoint, store):
    compiled(capsys, checkpoint)
    status, out, _ = run(
        capsys,
        *("compile", "--model", checkpoint, "--device", "cpu", "--max-model-len", "64", "--max-num-seqs", "3"),
        "--dry-run",
    )
    assert status == 4
    assert "neuron_config.batch_size: 2 in the artifact, 3 needed" in out


def test_compile_statuses(capsys, checkpoint, store, monkeypatch):
    base = ("compile", "--model", checkpoint, "--device", "null", *SHAPE)
    status, _, err = run(capsys, *base, "--override-neuron-config", '{"tp_degre": 2}')
    assert status == 1 and "tp_degree" in err
    assert run(capsys, "compile", "--model", "./no/model")[0] == 1
    status, _, err = run(capsys, *base, "--no-compile")
    assert status == 1 and "--no-compile" in err
    with pytest.raises(SystemExit) as caught:
        run(capsys, *base, "--no-such-flag")
    assert caught.value.code == 2

    def broken(config, directory, progress):
        raise RuntimeError("internal compiler error")

    monkeypatch.setattr("vllm.targets.null.NullDeviceModel.compile", broken)
    status, _, err = run(capsys, *base)
    assert status == 3 and "internal compiler error" in err
    assert [path.name for path in store.iterdir() if not path.name.startswith(".lock")] == []


def test_compile_in_a_process_of_its_own(checkpoint, store):
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "neuron", "compile"]
    result = subprocess.run(
        [*command, "--model", str(checkpoint), "--device", "null", *SHAPE], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stdout.startswith("compiled ")
    assert "\x1b" not in result.stdout + result.stderr


# inspect


def test_a_bar_in_a_terminal(checkpoint, store):
    """Drawn on stderr, so that stdout can be piped; the log's lines stand above it, whole."""
    shown, terminal = pty.openpty()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "neuron", "compile"]
    words = ["--model", str(checkpoint), "--device", "cpu", *SHAPE, "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "VLLM_LOGGING_LEVEL": "INFO"}
    run = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=terminal, env=environment)
    os.close(terminal)
    drawn = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(shown, 65536):
            drawn += piece
    os.close(shown)
    out, _ = run.communicate()
    assert run.returncode == 0 and not json.loads(out)["hit"]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).replace("\r", "\n").splitlines()
    assert any(line.startswith("packed ━") and "100%" in line for line in lines)
    logged = [line for line in lines if "there is no artifact" in line]
    assert len(logged) == 1 and logged[0].startswith("INFO")


def test_inspect(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint)
    status, found = run_json(capsys, "inspect", artifact)
    assert status == 0
    assert (found["hash"], found["whole"], found["would_load"], found["diff"]) == (artifact.name, True, None, [])
    assert found["bytes"] == sum((artifact / name).stat().st_size for name in found["files"])
    assert [each["kind"] for each in found["programs"]] == ["context_encoding", "token_generation"]
    status, out, _ = run(capsys, "inspect", artifact)
    assert status == 0
    assert "LlamaForCausalLM" in out and "weights.bin" in out


def test_inspect_for_flags(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint)
    status, found = run_json(capsys, "inspect", artifact, "--model", checkpoint, *SHAPE)
    assert (status, found["would_load"], found["diff"]) == (0, True, [])
    words = ("--model", checkpoint, "--max-model-len", "64", "--max-num-seqs", "4", "-tp", "2")
    status, found = run_json(capsys, "inspect", artifact, *words)
    assert (status, found["would_load"]) == (4, False)
    assert "neuron_config.batch_size: 2 in the artifact, 4 needed" in found["diff"]
    assert "neuron_config.tp_degree: 1 in the artifact, 2 needed" in found["diff"]
    status, out, _ = run(capsys, "inspect", artifact, *words)
    assert status == 4 and "it would not load" in out
    assert run(capsys, "inspect", artifact, "--model", checkpoint, "--max-model-len", "100000")[0] == 1


def test_inspect_damage(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint)
    data = bytearray((artifact / "weights.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / "weights.bin").write_bytes(data)
    status, found = run_json(capsys, "inspect", artifact)
    assert status == 1 and not found["whole"]
    assert "weights.bin" in found["damage"]


def test_inspect_says_whether_others_can_write(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint)
    assert run_json(capsys, "inspect", artifact)[1]["notes"] == []
    artifact.chmod(0o777)
    status, found = run_json(capsys, "inspect", artifact)
    assert status == 0
    assert "can be written by others (mode 0777)" in found["notes"][0]


def test_inspect_what_is_no_artifact(capsys, checkpoint, store, tmp_path):
    artifact = compiled(capsys, checkpoint)
    status, _, err = run(capsys, "inspect", store)
    assert status == 1 and artifact.name[:12] in err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.pt").write_bytes(b"")
    status, _, err = run(capsys, "inspect", foreign)
    assert status == 1 and "never loaded" in err
    assert run(capsys, "inspect", tmp_path / "nothing")[0] == 1
    with pytest.raises(SystemExit) as caught:
        run(capsys, "inspect")
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        run(capsys, "inspect", artifact, "-tp", "2")
    assert caught.value.code == 2 and "--model" in capsys.readouterr().err


# cache


@pytest.fixture
def two(capsys, checkpoint, store) -> tuple[Path, Path]:
    """An artifact that was loaded an hour ago, and one that never was; both were made long ago."""
    used = compiled(capsys, checkpoint, "--device", "null")
    idle = compiled(capsys, checkpoint, "--device", "cpu")
    hour_ago = time.time() - 3600
    (store / f".used-{used.name}").touch()
    os.utime(store / f".used-{used.name}", (hour_ago, hour_ago))
    for artifact, made in ((used, "2002-01-01T00:00:00+00:00"), (idle, "2001-01-01T00:00:00+00:00")):
        manifest = json.loads((artifact / "manifest.json").read_text()) | {"created": made}
        (artifact / "manifest.json").write_text(json.dumps(manifest))
    return used, idle


def test_ls(capsys, store, two):
    used, idle = two
    status, found = run_json(capsys, "cache", "ls")
    assert status == 0
    assert found["stores"] == [str(store)]
    by_hash = {each["hash"]: each for each in found["artifacts"]}
    assert set(by_hash) == {used.name, idle.name}
    assert by_hash[idle.name]["last_use"] is None
    assert by_hash[used.name]["last_use"] == pytest.approx(time.time() - 3600, abs=60)
    assert by_hash[idle.name]["bytes"] == sum(file.stat().st_size for file in idle.rglob("*") if file.is_file())
    _, out, _ = run(capsys, "cache", "ls")
    assert "2 artifacts" in out and "never" in out and used.name[:12] in out


def test_loading_is_noted_as_use(capsys, checkpoint, store):
    artifact = compiled(capsys, checkpoint, "--device", "null")
    assert run_json(capsys, "cache", "ls")[1]["artifacts"][0]["last_use"] is None
    LLM(model=str(checkpoint), device="null", max_model_len=64, max_num_seqs=2)
    (entry,) = run_json(capsys, "cache", "ls")[1]["artifacts"]
    assert entry["hash"] == artifact.name
    assert entry["last_use"] == pytest.approx(time.time(), abs=60)


def test_verify(capsys, two):
    assert run_json(capsys, "cache", "verify", "--deep") == (0, {"checked": 2, "damaged": {}})
    (two[1] / "index.json").write_text("{}")
    status, found = run_json(capsys, "cache", "verify")
    assert status == 1
    assert list(found["damaged"]) == [str(two[1])]
    assert "index.json" in found["damaged"][str(two[1])]


def test_prune_needs_a_rule_and_a_yes(capsys, two):
    assert run(capsys, "cache", "prune", "--yes")[0] == 2
    status, _, err = run(capsys, "cache", "prune", "--unused")
    assert status == 1 and "--yes" in err
    status, out, _ = run(capsys, "cache", "prune", "--unused", "--dry-run")
    assert status == 0 and f"would remove {two[1]}" in out
    assert all(path.is_dir() for path in two)


@pytest.mark.parametrize(
    "rule, gone",
    [
        (("--unused",), {1}),
        (("--older-than", "1d"), {1}),
        (("--older-than", "30m"), {0, 1}),
        (("--older-than", "30m", "--unused"), {1}),
        (("--keep", "1"), {1}),
        (("--keep", "0"), {0, 1}),
        (("--keep", "1", "--older-than", "30m"), {1}),
        (("--hash", "ffffffffffff0"), set()),
        (("--damaged",), set()),
    ],
)
def test_prune_by_rule(capsys, store, two, rule, gone):
    status, found = run_json(capsys, "cache", "prune", "--yes", *rule)
    assert status == 0
    assert set(found["removed"]) == {str(two[i]) for i in gone}
    assert {i for i in (0, 1) if not two[i].exists()} == gone
    assert not list(store.glob(".removing-*"))


def test_prune_by_hash(capsys, store, two):
    assert run(capsys, "cache", "prune", "--yes", "--hash", two[0].name[:12])[0] == 0
    assert not two[0].exists() and two[1].exists()
    assert not (store / f".used-{two[0].name}").exists()


def test_prune_touches_nothing_that_is_not_ours(capsys, store, two, tmp_path):
    used, idle = two
    (idle / "notes.txt").write_text("mine")
    for name in ("model.pt", "neuron_config.json"):
        (store / name).write_text("foreign")
    (store / ("0" * 64)).mkdir()
    (store / "checkpoints").mkdir()
    outside = tmp_path / "outside"
    used.rename(outside)
    used.symlink_to(outside)
    (store / f".tmp-{idle.name}-1-abcd").mkdir()
    status, found = run_json(capsys, "cache", "prune", "--yes", "--keep", "0")
    assert status == 1
    assert found["removed"] == []
    assert "notes.txt" in found["left"][str(idle)]
    assert (idle / "notes.txt").read_text() == "mine"
    assert (outside / "manifest.json").is_file()
    assert {"model.pt", "neuron_config.json", "0" * 64, "checkpoints"} <= {path.name for path in store.iterdir()}


def test_prune_leaves_what_is_being_made(capsys, store, two):
    with FileLock(store / f".lock-{two[1].name}"):
        status, found = run_json(capsys, "cache", "prune", "--yes", "--unused")
    assert status == 1
    assert "another process" in found["left"][str(two[1])]
    assert two[1].is_dir()


@pytest.mark.parametrize("words", [("--older-than", "soon"), ("--keep", "-1"), ("--hash", "xyz")])
def test_rules_that_cannot_be_read(capsys, words):
    with pytest.raises(SystemExit) as caught:
        run(capsys, "cache", "prune", *words)
    assert caught.value.code == 2


def test_stores_by_model(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    _, found = run_json(capsys, "cache", "ls", "--model", checkpoint)
    assert found["stores"] == [
        str(checkpoint / "neuron-compiled-artifacts"),
        str(tmp_path / "cache" / "neuron-compiled-artifacts"),
    ]
    _, found = run_json(capsys, "cache", "ls", "--store", tmp_path / "a", "--store", tmp_path / "b")
    assert found["stores"] == [str(tmp_path / "a"), str(tmp_path / "b")]
