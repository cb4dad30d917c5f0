"""Starts of a target that compiles quickly and counts how often, up to the point where the artifact is there."""

from __future__ import annotations

from pathlib import Path

from tests.neuron.configs import build
from vllm.artifacts.find import open_or_compile
from vllm.settings.resolve import resolve


class Target:
    """A target that writes two files, and counts how often."""

    compiled = 0
    layout = 1
    num_bytes = 0

    @classmethod
    def artifact_key(cls, config):
        return {"layout": cls.layout}

    @classmethod
    def artifact_bytes(cls, config):
        return cls.num_bytes

    @classmethod
    def compile(cls, config, directory, progress):
        assert not any(directory.iterdir())
        cls.compiled += 1
        progress("packing", 0.5)
        (directory / "programs").mkdir()
        (directory / "programs" / "decode_128.bin").write_bytes(b"program")
        (directory / "weights.bin").write_bytes(bytes(range(256)) * 1000)


def config_of(checkpoint: Path, **options):
    return resolve(build(model=str(checkpoint), model_path=str(checkpoint), max_num_seqs=4, **options))


def start(checkpoint: Path, target, **options):
    return open_or_compile(config_of(checkpoint, **options), target, lambda what, share: None)
