"""generation_config.json: values that no request could use are refused at the start, by file and entry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vllm.engine.arg_utils import EngineArgs


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def config_of(directory: Path, entries: dict[str, Any], **options: Any) -> dict[str, Any]:
    (directory / "generation_config.json").write_text(json.dumps(entries))
    config = EngineArgs(model=str(directory), device="null", **options).create_engine_config()
    return config.model_config.hf_generation_config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"eos_token_id": [[2]]}, r"eos_token_id is \[\[2\]\], expected a token id or a list of them"),
        ({"eos_token_id": 2**40}, "eos_token_id is 1099511627776, expected a token id"),
        ({"eos_token_id": 2.5}, "eos_token_id is 2.5"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_k": 2.5}, "top_k is 2.5, expected an integer"),
        ({"temperature": -1.0}, "temperature must"),
        ({"max_new_tokens": 0}, "max_tokens must"),
        ({"top_p": 7, "top_k": "x"}, "top_k is 'x'"),
    ],
)
def test_values_that_cannot_be_used(entries: dict[str, Any], message: str, directory: Path) -> None:  # M9
    with pytest.raises(ValueError, match=rf"generation_config\.json cannot be used: {message}"):
        config_of(directory, entries)


def test_values_that_are_not_taken_are_no_obstacle(directory: Path) -> None:
    entries = {"temperature": "hot", "eos_token_id": 2}
    assert config_of(directory, entries, generation_config="vllm") == {"eos_token_id": 2}
    replaced = config_of(directory, entries, override_generation_config={"temperature": 0.5})
    assert replaced == {"temperature": 0.5, "eos_token_id": 2}


def test_null_means_nothing(directory: Path) -> None:
    assert config_of(directory, {"temperature": None, "eos_token_id": None})["temperature"] is None
