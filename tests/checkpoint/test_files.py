"""Which files are read of a directory that holds more, or less, than a checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny import make_checkpoint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.files import WHOLE, find_weights, weight_files

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def write_index(directory: Path, owners: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))


def sharded(directory: Path) -> dict[str, str]:
    """Two shards in place of the one file, and their index."""
    tensors = load_file(directory / WHOLE)
    names = sorted(tensors)
    owners = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(owners.values()):
        save_file({name: tensors[name] for name in names if owners[name] == file}, directory / file)
    (directory / WHOLE).unlink()
    write_index(directory, owners)
    return owners


def test_an_index_may_name_what_nobody_wants(directory: Path) -> None:  # M10
    """Tied output matrices and caches of angles are left out of files, and stay in indices."""
    owners = dict.fromkeys(load_file(directory / WHOLE), WHOLE)
    write_index(directory, {**owners, "model.layers.0.self_attn.rotary_emb.inv_freq": WHOLE})
    checkpoint = open_checkpoint(directory)
    assert sorted(checkpoint.tensors()) == sorted(owners)
    with pytest.raises(CheckpointError, match=r"inv_freq', though its index says that model\.safetensors holds it"):
        checkpoint.get("model.layers.0.self_attn.rotary_emb.inv_freq")


def test_the_index_decides_between_shards(directory: Path) -> None:  # M12
    owners = sharded(directory)
    other = next(file for file in owners.values() if file != owners[NORM])
    expected = load_file(directory / owners[NORM])[NORM]
    save_file({**load_file(directory / other), NORM: expected + 1}, directory / other)
    np.testing.assert_array_equal(open_checkpoint(directory).get(NORM).float32(), expected)


def test_a_tensor_that_lies_elsewhere_than_the_index_says_is_found(directory: Path) -> None:
    owners = sharded(directory)
    other = next(file for file in owners.values() if file != owners[NORM])
    write_index(directory, {**owners, NORM: other})
    assert NORM in open_checkpoint(directory)


def test_without_an_index_the_whole_file_goes_first(directory: Path, caplog: pytest.LogCaptureFixture) -> None:  # M12
    expected = load_file(directory / WHOLE)
    save_file({name: value * 2 for name, value in expected.items()}, directory / "model.ema.safetensors")
    with caplog.at_level(logging.WARNING, "vllm"):
        checkpoint = open_checkpoint(directory)
    np.testing.assert_array_equal(checkpoint.get(NORM).float32(), expected[NORM])
    assert "model.ema.safetensors, which no index names" in caplog.text
    assert find_weights(directory).files == [directory / WHOLE]


def test_one_tensor_in_two_files_without_a_word_which(directory: Path) -> None:
    (directory / WHOLE).rename(directory / "a.safetensors")
    save_file({NORM: np.ones(4, np.float32)}, directory / "b.safetensors")
    message = rf"{NORM!r} is in several files .*a\.safetensors and b\.safetensors, and no index says which is meant"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_a_stale_index_beside_a_whole_file(directory: Path, caplog: pytest.LogCaptureFixture) -> None:  # M12
    write_index(directory, {NORM: "model-00001-of-00002.safetensors"})
    with caplog.at_level(logging.WARNING, "vllm"):
        checkpoint = open_checkpoint(directory)
    assert EMBEDDING in checkpoint
    assert "'model-00001-of-00002.safetensors', which is not there: reading model.safetensors instead" in caplog.text


def test_a_missing_shard_is_named(directory: Path) -> None:
    owners = sharded(directory)
    (directory / owners[NORM]).unlink()
    with pytest.raises(CheckpointError, match=rf"names the file {owners[NORM]!r}, .*is the download complete"):
        open_checkpoint(directory)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=rf"one of 2 parts, and {owners[NORM]} is not there"):
        open_checkpoint(directory)


def test_adapters_and_copies_in_other_formats_are_no_weights(directory: Path) -> None:
    for name in ("adapter_model.safetensors", "consolidated.safetensors"):
        shutil.copy(directory / WHOLE, directory / name)
    (directory / WHOLE).rename(directory / "weights.safetensors")
    assert find_weights(directory).files == [directory / "weights.safetensors"]


def test_names_without_their_prefix(tmp_path: Path) -> None:  # M12
    """As saved from a model without an output matrix."""
    directory = make_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = load_file(directory / WHOLE)
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, directory / WHOLE)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**settings, "architectures": ["LlamaModel"]}))
    checkpoint = open_checkpoint(directory)
    assert sorted(checkpoint.tensors()) == sorted(tensors)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]


def test_a_tied_matrix_under_its_other_name(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = load_file(directory / WHOLE)
    tensors["lm_head.weight"] = tensors.pop(EMBEDDING)
    save_file(tensors, directory / WHOLE)
    np.testing.assert_array_equal(open_checkpoint(directory).get(EMBEDDING).float32(), tensors["lm_head.weight"])


def test_layers_that_are_announced_and_not_there(directory: Path) -> None:  # M13
    settings = json.loads((directory / "config.json").read_text())
    settings |= {"num_hidden_layers": 9000, "layer_types": None}
    (directory / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"config\.json: .*num_hidden_layers is 9000, and the last layer in the"):
        open_checkpoint(directory)


def test_hf_is_what_load_format_calls_it(directory: Path) -> None:  # M12
    assert open_checkpoint(directory, load_format="hf").files == [directory / WHOLE]


@pytest.mark.parametrize(("load_format", "count"), [("auto", 1), ("dummy", 0), ("gguf", 0), ("safetensors", 1)])
def test_weight_files_by_load_format(load_format: str, count: int, directory: Path) -> None:
    assert len(weight_files(directory, load_format)) == count


@pytest.mark.parametrize("has_biases", [False, True])
def test_biases_of_a_draft_under_its_own_names(has_biases: bool, tmp_path: Path) -> None:
    """An EAGLE draft of a Qwen 2 has no embedding, and no `model.` in its names."""
    directory = make_checkpoint(tmp_path, "qwen2", num_hidden_layers=1)
    tensors = {
        name.removeprefix("model."): value
        for name, value in load_file(directory / WHOLE).items()
        if ".layers." in name and (has_biases or not name.endswith("bias"))
    }
    save_file(tensors, directory / WHOLE)
    assert open_checkpoint(directory).config["attention_bias"] is has_biases
