"""Paths that are no checkpoint are refused by what they are."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import gguf
import pytest

from tests.checkpoint.gguf_files import add_value, finish, write_gguf
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 269060552\n"


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "git-lfs pointer.*`git lfs pull`"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", r"web page \(HTML\)"),
        (b"", "is empty"),
    ],
    ids=["git-lfs", "html", "empty"],
)
def test_files_that_stand_for_others(name: str, content: bytes, message: str, directory: Path) -> None:  # M7
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*{message}"):
        load_tokenizer(open_checkpoint(directory))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "git-lfs pointer"),
        (b"PK\x03\x04" + bytes(60), "a pickle.*never opened"),
        (pickle.dumps({"a": [1, 2]} | {str(i): i for i in range(9)}), "a pickle.*never opened"),
        (b"\x1f\x8b" + bytes(60), "gzip archive; unpack"),
        (b"tjgg" + bytes(60), "format from before GGUF"),
        (b"Invalid username or password.", "text that begins with 'Invalid username"),
    ],
)
@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_files_of_another_kind(name: str, content: bytes, message: str, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*{message}"):
        open_checkpoint(directory)


def test_gguf_and_safetensors_under_the_others_name(directory: Path) -> None:
    write_gguf(directory / "m.gguf", directory)
    (directory / "model.safetensors").rename(directory / "a.gguf")
    (directory / "m.gguf").rename(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"it is a GGUF file; rename it to \*\.gguf"):
        open_checkpoint(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="looks like a safetensors file"):
        open_checkpoint(directory)


def files(directory: Path, *names: str, **contents: object) -> Path:
    """A directory of empty files, and of JSON files by their names without suffix."""
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(b"\0" * 64)
    for name, content in contents.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


ADAPTER = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}


@pytest.mark.parametrize(
    ("names", "contents", "message"),
    [
        (["adapter_model.safetensors"], {"adapter_config": ADAPTER}, r"adapter \(LORA.* of the base model 'owner/b"),
        (["adapter_model.bin"], {"adapter_config": {}}, "an adapter .* of a base model that it does not name"),
        (["consolidated.safetensors"], {"params": {}, "tekken": {}}, "Mistral's own format"),
        (["consolidated-00001-of-00002.safetensors"], {"config": {"model_type": "mistral"}}, "Mistral's own format"),
        (["consolidated.00.pth"], {"params": {}}, "Meta's own format"),
        (["openvino_model.xml", "openvino_model.bin"], {"config": {}}, r"converted to OpenVINO \(openvino_model\.xml"),
        (["model.onnx"], {"config": {}}, r"converted to ONNX \(model\.onnx\)"),
        (["tf_model.h5"], {"config": {}}, "converted to TensorFlow"),
        (["rank0.engine"], {"config": {}}, "converted to TensorRT"),
        (["model.pt"], {"neuron_config": {}}, "NxD Inference compiled"),
        (["pytorch_model.bin"], {"config": {}}, r"pickles \(pytorch_model\.bin\)"),
        ([], {"model_index": {}}, "diffusers"),
    ],
)  # fmt: skip
def test_directories(names: list[str], contents: dict[str, object], message: str, tmp_path: Path) -> None:  # M9
    path = files(tmp_path / "x", *names, **contents)
    with pytest.raises(CheckpointError, match=rf"{path} (is|holds) .*{message}"):
        open_checkpoint(path)


def test_an_adapter_beside_whole_weights_is_no_obstacle(directory: Path) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (directory / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    assert open_checkpoint(directory).files == [directory / "model.safetensors"]


def test_tekken_json_alone_is_named(directory: Path) -> None:  # M9
    (directory / "tokenizer.json").unlink()
    (directory / "tekken.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json; its tekken\.json.*is not read"):
        load_tokenizer(open_checkpoint(directory))


class TestHubCaches:  # M9
    @pytest.fixture
    def folder(self, directory: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "hub" / "models--owner--name"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        shutil.copytree(directory, folder / "snapshots" / "abc")
        return folder

    def test_the_snapshot_is_taken(self, folder: Path) -> None:
        expected = folder / "snapshots" / "abc"
        (folder / "snapshots" / "def").mkdir()
        assert open_checkpoint(folder).path == expected
        assert open_checkpoint(folder / "snapshots").path == expected
        assert load_tokenizer(str(folder)).eos_token_id == 2

    def test_snapshots_to_choose_from_are_listed(self, folder: Path) -> None:
        (folder / "refs" / "main").unlink()
        (folder / "snapshots" / "def").mkdir()
        with pytest.raises(CheckpointError, match=r"pass one of its snapshots: .*/snapshots/abc, .*/snapshots/def"):
            open_checkpoint(folder)

    def test_the_whole_cache(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is a cache of the hub; .*such as models--owner--name"):
            open_checkpoint(folder.parent)


class TestGgufFilesThatAreNoModel:  # M9
    @pytest.mark.parametrize(
        ("architecture", "metadata", "message"),
        [
            ("llama", {"general.type": "adapter"}, r"an adapter \(LoRA\), not a model \(general\.type 'adapter'\)"),
            ("clip", {"general.type": "mmproj"}, "a projector of images"),
            ("clip", {}, "a projector of images"),
            ("llama", {"general.type": "imatrix"}, "of the type 'imatrix', not a model"),
            ("llama", {"general.type": "model"}, "a vocabulary without weights"),
        ],
    )
    def test_they_are_named(self, architecture: str, metadata: dict[str, str], message: str, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        for key, value in metadata.items():
            add_value(writer, key, value)
        finish(writer)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "m.gguf")

    def test_one_beside_a_model_is_left_out(self, tiny_llama: Path, tmp_path: Path) -> None:  # M11
        write_gguf(tmp_path / "model.gguf", tiny_llama)
        for name in ("mmproj-model-f16.gguf", "model.imatrix.gguf"):
            (tmp_path / name).write_bytes(b"GGUF")
        assert open_checkpoint(tmp_path).path == tmp_path / "model.gguf"


def test_a_gguf_file_is_known_by_its_first_bytes(tiny_llama: Path, tmp_path: Path) -> None:  # M11
    """As Ollama keeps them."""
    blob = tmp_path / "sha256-0d1c"
    write_gguf(blob, tiny_llama, metadata={"tokenizer.ggml.model": "none"})
    checkpoint = open_checkpoint(blob)
    assert checkpoint.gguf is not None
    assert checkpoint.path == blob
    with pytest.raises(CheckpointError, match="tokenizer is of kind 'none'"):
        load_tokenizer(str(blob))
