"""What can be opened, and what is said about the rest."""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.gguf_files import write_gguf
from tests.tiny import make_checkpoint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.reference import load_weights


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_a_directory(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"temperature": 0.5}')
    checkpoint = open_checkpoint(directory)
    assert checkpoint.path == directory
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.config["torch_dtype"] == "float32"
    assert checkpoint.generation_config == {"temperature": 0.5}
    assert checkpoint.tokenizer_config["eos_token"] == "<|im_end|>"
    assert checkpoint.files == [directory / "model.safetensors"]
    assert checkpoint.gguf is None
    assert "model.norm.weight" in checkpoint


def test_a_name_that_is_not_there_is_an_error(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.nrm\.weight' \(nearest: 'model\.norm\.weight'\)"):
        open_checkpoint(directory).get("model.nrm.weight")


def test_safetensors_go_before_gguf_unless_told(directory: Path) -> None:
    write_gguf(directory / "model.gguf", directory, "Q8_0")
    name = "model.layers.0.mlp.up_proj.weight"
    formats = {
        kind: open_checkpoint(directory, load_format=kind).get(name).format for kind in ("auto", "gguf", "safetensors")
    }
    assert formats == {"auto": "f32", "gguf": "q8_0", "safetensors": "f32"}


def test_several_gguf_files(directory: Path) -> None:
    write_gguf(directory / "b.gguf", directory)
    shutil.copy(directory / "b.gguf", directory / "a.gguf")
    with pytest.raises(CheckpointError, match=r"several GGUF files; pass the path of one of them: a\.gguf, b\.gguf"):
        open_checkpoint(directory, load_format="gguf")
    assert open_checkpoint(directory / "a.gguf").path == directory / "a.gguf"


def test_pickles_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickles \(pytorch_model\.bin\).*never opened.*save_pretrained"):
        open_checkpoint(directory)


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors or \*\.gguf file"):
        open_checkpoint(directory)
    with pytest.raises(CheckpointError, match=r"holds no \*\.gguf file"):
        open_checkpoint(directory, load_format="gguf")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json is not a JSON object"),
        ("config.json", '{"model_type": "llama"}', r"hidden_size is missing; intermediate_size is missing"),
        ("model.safetensors.index.json", "{}", "has no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', r"names the file '\.\./x"),
    ],
)
def test_broken_json(name: str, text: str, message: str, directory: Path) -> None:
    (directory / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_without_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(directory)


def test_a_file_of_a_checkpoint_is_not_a_checkpoint(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=f"one file of a checkpoint; pass its directory, {directory}"):
        open_checkpoint(directory / "model.safetensors")


def test_names_that_lead_nowhere(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"does not exist.*Did you mean {directory}\?"):
        open_checkpoint(directory.parent / "modle")
    with pytest.raises(
        CheckpointError, match=r"hub cannot be reached.*Download it where there is a network.*pass its path"
    ):
        open_checkpoint("owner/model")
    with pytest.raises(CheckpointError, match="unknown load_format 'pt'; known: auto"):
        open_checkpoint(directory, load_format="pt")


def test_hub_downloads_no_pickle_and_honours_its_arguments(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    open_checkpoint("owner/model", revision="main", download_dir="/cache", token="secret")
    ((name, options),) = calls
    patterns, left_out = options.pop("allow_patterns"), options.pop("ignore_patterns")
    assert (name, options) == ("owner/model", {"revision": "main", "cache_dir": "/cache", "token": "secret"})
    wanted = {
        "model-00001-of-2.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
    }
    unwanted = {
        "pytorch_model.bin",
        "model.pt",
        "x.gguf",
        "run.py",
        "consolidated.safetensors",
        "original/a.safetensors",
    }
    kept = {file for file in wanted | unwanted if _matches(file, patterns) and not _matches(file, left_out)}
    assert kept == wanted


def _matches(name: str, patterns: object) -> bool:
    assert isinstance(patterns, list)
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_dummy_weights_fit_the_model(family: str, tmp_path: Path) -> None:
    overrides = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    directory = make_checkpoint(tmp_path, family, **overrides)
    real = open_checkpoint(directory)
    (directory / "model.safetensors").unlink()
    dummy = open_checkpoint(directory, load_format="dummy")
    assert {name: dummy.get(name).shape for name in dummy.tensors()} == {n: real.get(n).shape for n in real.tensors()}

    weights = load_weights(build_graph(dummy.config), dummy)
    assert all(np.isfinite(value).all() for value in weights.values())
    tensor = dummy.get("model.layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(tensor.float32_rows(5, 9), tensor.float32()[5:9])
    assert tensor.raw().view(np.float32).tolist() == tensor.float32().tolist()
    assert 0.01 < tensor.float32().std() < 0.04


def test_nothing_heavy_is_imported(directory: Path, smollm2: Path) -> None:
    script = f"""
import sys
from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer
for path in {[str(directory), str(smollm2)]}:
    checkpoint = open_checkpoint(path)
    load_tokenizer(checkpoint)
    checkpoint.get("model.norm.weight").float32()
heavy = {{"torch", "transformers", "gguf", "huggingface_hub"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_chat_template_in_its_own_json(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    entries = json.loads((directory / "tokenizer_config.json").read_text())
    entries.pop("chat_template", None)  # where transformers 4.51 saves it
    (directory / "tokenizer_config.json").write_text(json.dumps(entries))
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "X"}))
    assert load_tokenizer(directory).chat_template == "X"


def test_every_part_of_a_split_file_is_downloaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, name: str, **_: object) -> str:
        asked.append((repository, name))
        return str(tmp_path / Path(name).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    names = [f"Q8_0/m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    with pytest.raises(CheckpointError):
        open_checkpoint(f"owner/model/{names[1]}")
    assert asked == [("owner/model", name) for name in names]
