"""A small checkpoint, a target of the test's own, and caches that no other test sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.neuron.artifact_starts import Target
from vllm.artifacts import fingerprint


@pytest.fixture
def private_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.delenv("NEURON_COMPILED_ARTIFACTS", raising=False)
    monkeypatch.setattr(fingerprint, "CLOCK_GRANULARITY_SECONDS", 0.0)


@pytest.fixture
def target():
    return type("FreshTarget", (Target,), {"compiled": 0})


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights " * 1000)
    return directory
