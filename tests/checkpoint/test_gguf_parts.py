"""GGUF files that were split: read whole by any part or by their directory, and refused if a part is missing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.checkpoint.gguf_files import add_value, finish, write_gguf
from tests.checkpoint.test_gguf import TOKENIZER
from tests.e2e.test_models import random_tokens
from tests.e2e.test_models_through_the_engine import generate
from vllm.artifacts.fingerprint import fingerprint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer


def split(whole: Path, directory: Path, count: int = 3, changes: dict[str, int] | None = None) -> list[Path]:
    """As llama.cpp's gguf-split does: metadata in the first part, tensors over all of them.

    changes: of the metadata of the second part, by the name after `split.`.
    """
    reader = gguf.GGUFReader(whole)
    paths = [directory / f"m-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama") if number == 0 else gguf.GGUFWriter(path, "")
        for key, field in reader.fields.items():
            if number == 0 and not key.startswith("GGUF.") and key != "general.architecture":
                add_value(writer, key, field.contents())
        entries = {
            "no": number,
            "count": count,
            "tensors_count": len(reader.tensors),
            **((changes or {}) if number == 1 else {}),
        }
        writer.add_uint16("split.no", entries["no"])
        writer.add_uint16("split.count", entries["count"])
        writer.add_int32("split.tensors.count", entries["tensors_count"])
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        finish(writer)
    return paths


@pytest.fixture
def whole(tiny_llama: Path, tmp_path: Path) -> Path:
    write_gguf(tmp_path / "whole.gguf", tiny_llama, "Q8_0", metadata=TOKENIZER)
    return tmp_path / "whole.gguf"


def test_a_split_file_is_the_whole_one(whole: Path, tmp_path: Path) -> None:  # M11
    directory = tmp_path / "parts"
    directory.mkdir()
    parts = split(whole, directory)
    expected = open_checkpoint(whole)
    for path in (directory, parts[0], parts[1]):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.path, checkpoint.files) == (parts[0], parts)
        assert checkpoint.config == expected.config
        assert sorted(checkpoint.tensors()) == sorted(expected.tensors())
        for name in expected.tensors():
            np.testing.assert_array_equal(checkpoint.get(name).raw(), expected.get(name).raw())
        assert load_tokenizer(str(path)).backend.get_vocab() == load_tokenizer(expected).backend.get_vocab()
    assert len(fingerprint(parts)) == len(parts)
    prompts = [random_tokens(9)]
    assert generate(directory, prompts, 8) == generate(whole, prompts, 8)


def test_a_missing_part_is_named(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"one of 3 parts, and m-00003-of-00003\.gguf is not there"):
        open_checkpoint(parts[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no": 2}, "m-00002-of-00002.gguf is part 2 .counted from 0. of 2, and was opened as part 1 of 2"),
        ({"count": 5}, "of 5, and was opened as part 1 of 2"),
    ],
)
def test_parts_that_do_not_belong_together(changes: dict[str, int], message: str, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path, 2, changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts[0])


def test_a_part_under_another_name_says_how_parts_are_found(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"of 3, and was opened as part 0 of 1: parts are found by their names"):
        open_checkpoint(renamed)


def test_two_files_in_a_directory_are_still_to_choose_from(whole: Path, tmp_path: Path) -> None:
    split(whole, tmp_path)
    with pytest.raises(CheckpointError, match=r"several GGUF files; pass .*: m-00001-of-00003\.gguf, whole\.gguf"):
        open_checkpoint(tmp_path)
