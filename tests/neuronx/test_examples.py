"""The examples that need NeuronCores, as a user runs them, on the stand-in."""

from __future__ import annotations

import re
import runpy
import sys

import pytest
from PIL import Image

from tests.neuronx import images
from tests.neuronx.adapters import make_adapter
from tests.neuronx.tiles import tile_processor
from tests.tree import ROOT

EXAMPLES = ROOT / "examples" / "offline_inference"


@pytest.fixture
def run(newest, tmp_path, monkeypatch, capsys):
    """Run an example with these words; what it printed."""
    monkeypatch.setenv("VLLM_NEURON_TARGET", "neuronx")
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "artifacts"))

    def run_example(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_adapters(run, tiny_llama, tmp_path):
    adapters = [f"{name}={make_adapter(tmp_path / name, tiny_llama, seed)}" for seed, name in enumerate("ab")]
    printed = run("neuron_multi_lora.py", tiny_llama, *adapters)
    answers = re.findall(r"^Prompt: '(.+)', (a|b): (.+)$", printed, re.MULTILINE)
    assert [name for _, name, _ in answers] == ["a", "b", "a", "b"]
    assert answers[0][0] == answers[1][0] != answers[2][0]
    assert answers[0][2] != answers[1][2] and answers[2][2] != answers[3][2]


def test_images(run, llama4, tmp_path, monkeypatch):
    monkeypatch.setattr("vllm.engine.text.input_processor.hub_processor", lambda path: lambda: tile_processor(llama4))
    files = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, file in enumerate(files):
        Image.fromarray(images.picture(seed)).save(file)
    printed = [run("neuron_multimodal.py", llama4, *some, "--max-model-len", "128") for some in (files, files[:1])]
    lengths = [int(re.search(r"^(\d+) tokens of prompt: ", text, re.MULTILINE)[1]) for text in printed]
    assert lengths[0] - lengths[1] >= images.TOKENS_PER_TILE


@pytest.mark.parametrize("name", ["neuron.py", "neuron_bucketing.py", "neuron_precompiled.py"])
def test_text(run, tiny_llama, name):
    assert run(name, tiny_llama)
