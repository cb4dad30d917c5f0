"""GGUF files: read as the gguf package reads them, run as transformers runs them, and refused cleanly when broken."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint.gguf_files import add_value, finish, write_gguf
from tests.e2e.steps import make_step
from tests.hf import load_model, rope_settings
from tests.tiny import VOCAB_SIZE, make_checkpoint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.gguf_file import _TYPES, read_gguf
from vllm.checkpoint.tensor import BLOCKS
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.reference import ReferenceProgram, load_weights

TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab", *(f"t{i}" for i in range(4, VOCAB_SIZE))],
    "tokenizer.ggml.token_type": [3] + [1] * (VOCAB_SIZE - 1),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 2,
}


def our_logits(path: Path, tokens: list[int]) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    graph = build_graph(checkpoint.config)
    program = ReferenceProgram(graph, load_weights(graph, checkpoint), 1, 64)
    return program.run(make_step([(tokens, 0)], np.array([[0]]), 64))


def hf_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


def random_tokens(count: int = 24) -> list[int]:
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, count).tolist()


def test_type_tables_agree_with_the_gguf_package() -> None:
    for number, name in _TYPES.items():
        assert gguf.GGMLQuantizationType(number).name.lower() == name
    for name, (values, size) in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]] == (values, size)


def test_reads_what_the_gguf_package_reads(smollm2: Path) -> None:
    ours, theirs = read_gguf(smollm2), gguf.GGUFReader(smollm2)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert list(ours.tensors) == [tensor.name for tensor in sorted(theirs.tensors, key=lambda t: t.data_offset)]
    for tensor in theirs.tensors[:14]:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(tensor.shape.tolist()[::-1])
        assert mine.format == tensor.tensor_type.name.lower()
        np.testing.assert_array_equal(mine.float32(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_round_trip(format: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Names, row order and values come back, read whole, in row ranges, and as raw rows."""
    decoded = write_gguf(tmp_path / "model.gguf", tiny_llama, format)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors()) == set(decoded)
    for name, expected in decoded.items():
        tensor = checkpoint.get(name)
        np.testing.assert_array_equal(tensor.float32(), expected)
        if expected.ndim > 1:
            assert tensor.format == format.lower()
            np.testing.assert_array_equal(tensor.float32_rows(3, 7), expected[3:7])
            kind = gguf.GGMLQuantizationType[format]
            np.testing.assert_array_equal(gguf.quants.dequantize(tensor.raw(), kind), expected)


@pytest.mark.parametrize("format", ["q4_k", "q5_k", "q6_k", "q2_k", "q3_k", "iq4_nl", "iq4_xs"])
def test_formats_that_the_gguf_package_only_reads(format: str, tmp_path: Path) -> None:
    """Random blocks with sane scales, as no Python writer makes these."""
    kind = gguf.GGMLQuantizationType[format.upper()]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(3).integers(0, 256, (6, 512 // values * size), dtype=np.uint8)
    blocks.reshape(-1, size)[:, [1, 3, size - 1]] &= 0x3F  # high bytes of half-precision scales: no infinity, no NaN
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=kind)
    finish(writer)

    tensor = read_gguf(tmp_path / "x.gguf").tensors["blk.0.ffn_up.weight"]
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.isfinite(expected).all()
    assert (tensor.format, tensor.shape) == (format, (6, 512))
    np.testing.assert_array_equal(tensor.raw(), blocks)
    np.testing.assert_array_equal(tensor.float32_rows(1, 5), expected[1:5])


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
        ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 0.01}),
        ("qwen3", {}),
    ],
)
def test_logits_equal_those_of_the_source(family: str, overrides: dict[str, object], tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "hf", family, **overrides)
    write_gguf(tmp_path / "model.gguf", source, "F32")
    model = load_model(source, torch.float32)
    tokens = random_tokens()
    expected = hf_logits(model, tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "model.gguf", tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("format", ["Q4_1", "Q8_0"])
def test_quantised_logits_equal_transformers(family: str, format: str, tmp_path: Path) -> None:
    overrides = {"head_dim": 128} if family == "qwen3" else {}  # transformers reads no other size from a GGUF file
    write_gguf(tmp_path / "m.gguf", make_checkpoint(tmp_path / "hf", family, **overrides), format, metadata=TOKENIZER)
    model = load_model(tmp_path, torch.float32, gguf_file="m.gguf")
    tokens = random_tokens()
    expected = hf_logits(model, tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "m.gguf", tokens), expected, atol=1e-4, rtol=1e-4)


def test_rope_factors_are_llama3_scaling(tmp_path: Path) -> None:
    """The converter stores Llama 3's scaling as one divisor a frequency."""
    scaling = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    source = make_checkpoint(tmp_path / "hf", "llama", **rope_settings(scaling))
    model = load_model(source, torch.float32)
    base = 1000.0 ** (-np.arange(0, 16, 2) / 16)
    write_gguf(tmp_path / "m.gguf", source, rope_factors=base / model.model.rotary_emb.inv_freq.numpy())
    tokens = random_tokens()
    expected = hf_logits(model, tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "m.gguf", tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rope_scaling_keys(metadata: dict[str, object], expected: object, tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_llama, metadata=metadata)
    assert open_checkpoint(tmp_path).config["rope_scaling"] == expected


def test_smollm2(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    config = checkpoint.config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (9, 3, 64)
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == ([2], 1, 2)
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 8192
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2]}
    template = load_tokenizer(checkpoint).chat_template
    assert isinstance(template, str) and "<|im_start|>" in template


def test_sampling_defaults_and_ends_of_turn(tiny_llama: Path, tmp_path: Path) -> None:
    extra = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20, "tokenizer.ggml.eot_token_id": 7}
    write_gguf(tmp_path / "m.gguf", tiny_llama, metadata=TOKENIZER | extra)
    expected = {"bos_token_id": 0, "eos_token_id": [2, 7], "temperature": 0.5, "top_k": 20}
    assert open_checkpoint(tmp_path).generation_config == expected


def test_other_architectures_are_left_to_the_registry(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    finish(writer)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"cannot run architecture gemma3 \(GGUF\); supported: CwmForCausalLM"):
        build_graph(checkpoint.config)


def test_architecture_of_control_characters_is_no_architecture(tmp_path: Path) -> None:
    finish(gguf.GGUFWriter(tmp_path / "m.gguf", "lla\nma"))
    with pytest.raises(CheckpointError, match=r"general.architecture is 'lla\\nma'"):
        open_checkpoint(tmp_path)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    finish(writer)
    with pytest.raises(CheckpointError, match=r"metadata llama\.embedding_length is missing"):
        open_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"a.string": "text", "a.number": 7, "a.list": [1, 2, 3], "a.strings": ["x", "yz"]}.items():
        add_value(writer, key, value)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((2, 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    finish(writer)
    return path.read_bytes()


@pytest.fixture(scope="module")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_llama, "Q4_0", metadata=TOKENIZER)
    return path.read_bytes()


def read_or_refuse(path: Path) -> None:
    """Reading gives tensors that lie in the file, or a CheckpointError."""
    try:
        file = read_gguf(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    for tensor in file.tensors.values():
        assert tensor.float32().shape == tensor.shape


def test_every_truncation_is_refused(small_file: bytes, tmp_path: Path) -> None:
    end_of_data = len(small_file.rstrip(b"\0"))
    for length in range(end_of_data - 32):
        path = tmp_path / "cut.gguf"
        path.write_bytes(small_file[:length])
        with pytest.raises(CheckpointError):
            read_gguf(path)
        path.unlink()


@settings(max_examples=400)
@given(data=st.data())
def test_flipped_bytes_never_crash(
    data: st.DataObject, small_file: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(broken)
    read_or_refuse(path)


@settings(max_examples=300)
@given(data=st.data())
def test_a_model_with_flipped_bytes_opens_or_is_refused(
    data: st.DataObject, tiny_gguf: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Metadata of the wrong type, vocabularies out of step, layers that are not there."""
    broken = bytearray(tiny_gguf)
    position = data.draw(st.integers(24, 1500) | st.integers(24, 12000))
    broken[position] = data.draw(st.integers(0, 12) | st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "model.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(broken)
    try:
        checkpoint = open_checkpoint(path)
        load_tokenizer(checkpoint)
        graph = build_graph(checkpoint.config)
        load_weights(graph, checkpoint)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("key", [b"attention.head_count", b"block_count", b"embedding_length", b"rope.dimension_count"])
def test_a_count_of_zero_is_refused_or_means_none(key: bytes, tiny_gguf: bytes, tmp_path: Path) -> None:
    value = tiny_gguf.index(b"llama." + key) + len(b"llama." + key) + 4
    path = tmp_path / "zero.gguf"
    path.write_bytes(tiny_gguf[:value] + bytes(4) + tiny_gguf[value + 4 :])
    if key == b"rope.dimension_count":
        assert open_checkpoint(path).config["head_dim"] == 16
        return
    with pytest.raises(CheckpointError, match="expected a positive integer"):
        open_checkpoint(path)


@settings(max_examples=200)
@given(position=st.integers(8, 300), value=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**61, 2**63, 2**64 - 1]))
def test_absurd_lengths_never_crash(
    position: int, value: int, small_file: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = small_file[:position] + value.to_bytes(8, "little") + small_file[position + 8 :]
    path = tmp_path_factory.getbasetemp() / "absurd.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(broken)
    read_or_refuse(path)
