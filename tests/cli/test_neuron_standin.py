"""`vllm neuron` on the `neuronx` target with the stand-in for the library, on a machine that has no device."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.neuron import plan
from tests.neuronx import standin
from vllm.entrypoints.cli.main import main
from vllm.settings import host_platform

VERSION = standin.VERSIONS[-1]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The stand-in, and an environment that a compilation may write to without trace."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(host_platform, "_set_by_library", [])
    with standin.installed(VERSION, tmp_path / "site"):
        yield


def test_compile_and_inspect_without_a_device(capsys, library, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "store"))
    flags = ("--model", str(tiny_llama), "--max-model-len", "128", "--max-num-seqs", "2")
    status = main(["neuron", "compile", *flags, "--device", "neuronx", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert (status, made["target"], made["hit"]) == (0, "neuronx", False)
    assert main(["neuron", "inspect", made["artifact"], *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["would_load"] and found["whole"]
    assert main(["neuron", "inspect", made["artifact"], *flags, "-tp", "2"]) == 4
    assert "neuron_config.tp_degree: 1 in the artifact, 2 needed" in capsys.readouterr().out
    _, planned = plan(capsys, tiny_llama, *flags[2:])
    expected = {each["path"].partition("{")[0] for each in planned["artifact"]["files"]} - {"manifest.json"}
    assert {name for name in expected if not any(file.startswith(name) for file in found["files"])} == set()
    assert len(planned["programs"]) == len(found["programs"])
