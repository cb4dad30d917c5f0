"""Damaged checkpoints: each opens and computes, or ends in `CheckpointError` that names the file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.checkpoint.gguf_files import add_value, finish, gguf_name
from tests.checkpoint.test_gguf import TOKENIZER
from vllm import SamplingParams
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.text.input_processor import default_sampling_params
from vllm.settings.faults import NeuronConfigError
from vllm.targets.cpu.coverage import check_all_read
from vllm.targets.cpu.layers import window_of
from vllm.targets.cpu.memory import InsufficientMemory
from vllm.targets.cpu.model import CpuDeviceModel, _parts

FILES = {
    "config.json": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32},
        "rope_theta": 1e4,
        "sliding_window": 8,
        "layer_types": ["full_attention", "full_attention"],
        "torch_dtype": "float32",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "weight_block_size": [128, 128],
            "config_groups": {},
        },
    },
    "generation_config.json": {
        "eos_token_id": [2, 0],
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "max_new_tokens": 9,
    },
    "tokenizer_config.json": {
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "lstrip": False, "special": True}},
        "eos_token": {"content": "<|im_end|>"},
        "model_max_length": 512,
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    },
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}},
    "model.safetensors.index.json": {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}},
}
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 2.5, -0.5, 1e400, math.nan, 2**31, 2**40, 2**63, 10**30),
    *("", "x", "2", "0.5", "llama", "qwen2", "mistral", "cwm", "x" * 99),
    *([], {}, [[2]], [2.5], ["x"], [None], [True], {"a": 1}, {"": {}}, [{}]),
]


@pytest.fixture(scope="module")
def pristine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mutations") / "model"
    shutil.copytree(tiny_llama, directory, ignore=shutil.ignore_patterns("neuron-compiled-artifacts"))
    for name, entries in FILES.items():
        file = directory / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | entries))
    names = list(open_checkpoint(directory).tensors())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    return directory


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any, remove: bool) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and remove:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], new, remove)
    return copy


def use(directory: Path) -> None:
    """All that happens before a weight is packed, and the defaults of requests."""
    checkpoint = open_checkpoint(directory)
    load_tokenizer(checkpoint)
    config = EngineArgs(model=str(directory), device="cpu", max_num_seqs=2, max_model_len=16).create_engine_config()
    SamplingParams(**default_sampling_params(config.model_config.hf_generation_config))
    CpuDeviceModel.check_fits(config)
    check_all_read((part.graph, part.weights) for part in _parts(config))


def opens_or_is_refused(directory: Path) -> None:
    """Besides damage, a config may ask for more than there is: then what the options may be is said."""
    try:
        use(directory)
    except CheckpointError as error:
        assert str(directory) in str(error), error
        assert "\n" not in str(error).strip()
    except (NeuronConfigError, InsufficientMemory):
        pass
    except ValueError as error:
        assert "max_model_len" in str(error), error


def test_the_pristine_one_works(pristine: Path) -> None:
    use(pristine)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_entry_replaced_or_removed(data: st.DataObject, pristine: Path) -> None:  # S7, M8, M9
    name = data.draw(st.sampled_from([*FILES, "config.json"]))
    content = json.loads((pristine / name).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(content))))
        content = replaced(content, path, data.draw(st.sampled_from(VALUES)), data.draw(st.integers(0, 4)) == 0)
    mutated(pristine, name, json.dumps(content).encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_a_text_file_replaced(data: st.DataObject, pristine: Path) -> None:
    name = data.draw(st.sampled_from([*FILES, "tokenizer.json", "chat_template.jinja"]))
    content = bytearray((pristine / name).read_bytes()) if (pristine / name).is_file() else bytearray(b"{}")
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if data.draw(st.integers(0, 5)) == 0:
        content = content[:start]
    mutated(pristine, name, bytes(content))


GGUF_VALUES = [0, 1, 7, 2**31, 2**32 - 1, 0.5, -1.0, True, "x", "", ["x", "y"], [1, 2, 3], [0.5]]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_metadata_of_a_gguf_file_replaced_or_removed(
    data: st.DataObject, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    metadata = TOKENIZER | {f"llama.{name}": value for name, value in _SIZES.items()} | {"general.type": "model"}
    key = data.draw(st.sampled_from([*metadata, "llama.rope.scaling.type", "split.count", "general.sampling.temp"]))
    if data.draw(st.integers(0, 4)) == 0:
        metadata.pop(key, None)
    else:
        metadata[key] = data.draw(st.sampled_from(GGUF_VALUES))
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        add_value(writer, name, value)
    for name, tensor in load_file(tiny_llama / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), tensor)
    finish(writer)
    opens_or_is_refused(path)


def test_a_window_beyond_every_context_hides_nothing() -> None:
    config = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 2**31}
    assert [window_of(config, layer) for layer in (0, 1)] == [2**31 - 1, 0]


_SIZES = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 16,
    "rope.freq_base": 1e4,
    "rope.dimension_count": 16,
}


def mutated(pristine: Path, name: str, content: bytes) -> None:
    file = pristine / name
    before = file.read_bytes() if file.is_file() else None
    file.write_bytes(content)
    try:
        opens_or_is_refused(pristine)
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
