"""One model in the forms that engines take: GGUF in several weight formats, and a Hugging Face directory in bf16.

Everything is derived from one GGUF file, so every engine computes with the same numbers up to its rounding. In 4-bit
files the embedding, which is the output matrix of tied models, is kept in 8 bits, as llama.cpp keeps it at least.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from vllm.checkpoint import Checkpoint, open_checkpoint
from vllm.checkpoint.gguf_model import hf_name
from vllm.checkpoint.tokenizer import load_tokenizer

WIDTHS = {"q4_0": 4, "q4_1": 4, "q8_0": 8, "bf16": 16}
"""Weight format -> bits."""

LLAMA_1B = {
    "block_count": 22,
    "context_length": 2048,
    "embedding_length": 2048,
    "feed_forward_length": 5632,
    "attention.head_count": 32,
    "attention.head_count_kv": 4,
    "rope.dimension_count": 64,
}
"""A Llama of 1.1 billion parameters, of TinyLlama's shape."""
LLAMA_1B_VOCAB = 32000

_QUANTISED = gguf.GGMLQuantizationType
_FILE_TYPES = {
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
_ROTATED = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
"""Matrices whose rows GGUF has in another order -> whose number of heads counts."""
_EMBEDDINGS = ("token_embd.weight", "output.weight")


class ModelFiles:
    """source: a GGUF file. cache: where derived files are kept; those that are there are used again."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source = source
        self.cache = cache / source.stem
        self.cache.mkdir(parents=True, exist_ok=True)

    def gguf(self, format: str) -> Path:
        """The model with its matrices in `format`: the source itself if it is that."""
        if matrix_format(self.source) == format:
            return self.source
        path = self.cache / f"{format}.gguf"
        if not path.exists():
            write_whole(path, lambda part: convert(self.source, part, format))
        return path

    def layers(self, directory: str, format: str) -> Path:
        """A checkpoint that has fewer of the model's layers, as GGUF."""
        path = self.cache / f"{Path(directory).name}-{format}.gguf"
        if not path.exists():
            write_whole(path, lambda part: write_layers(open_checkpoint(directory), self.source, part, format))
        return path

    def huggingface(self) -> Path:
        """A directory with config.json, model.safetensors (bf16) and the tokenizer."""
        directory = self.cache / "bf16-hf"
        if not (directory / "config.json").exists():
            export_huggingface(self.source, directory)
        return directory


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside, then rename: a file that was cut short is never taken for whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    part.rename(path)


def matrix_format(path: Path) -> str:
    """The format of a layer's matrices."""
    tensors = gguf.GGUFReader(path).tensors
    return str(next(t.tensor_type.name.lower() for t in tensors if t.name == "blk.0.ffn_up.weight"))


def convert(source: Path, target: Path, format: str) -> None:
    """Write `source` with its matrices in `format`."""
    reader = gguf.GGUFReader(source)
    writer = _writer_like(reader, target, format, {})
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        _add_tensor(writer, tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]), format)
    _close(writer)


def write_layers(checkpoint: Checkpoint, like: Path, target: Path, format: str) -> None:
    """Write as GGUF a Llama that has fewer layers than the GGUF file `like`, and all else of it."""
    reader = gguf.GGUFReader(like)
    writer = _writer_like(reader, target, format, {"llama.block_count": int(checkpoint.config["num_hidden_layers"])})
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if name not in checkpoint:
            continue
        values = checkpoint.get(name).float32()
        for rotated, heads in _ROTATED.items():
            if rotated in tensor.name:
                values = _interleaved(values, int(checkpoint.config[heads]))
        _add_tensor(writer, tensor.name, values, format)
    _close(writer)


def _interleaved(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key matrix, from halves of a head that rotate together to neighbours that do."""
    return values.reshape(num_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _writer_like(reader: gguf.GGUFReader, target: Path, format: str, changed: dict[str, Any]) -> gguf.GGUFWriter:
    """A writer with the entries of `reader`, of which some are changed."""
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents(), use_temp_file=True)
    for name, value, kinds in _metadata(reader):
        _add_entry(writer, name, changed.get(name, value), kinds)
    writer.add_file_type(_FILE_TYPES[format])
    return writer


def _add_entry(writer: gguf.GGUFWriter, name: str, value: Any, kinds: list[Any]) -> None:
    writer.add_key_value(name, value, kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)


def _metadata(reader: gguf.GGUFReader) -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, value and types of every entry that is copied as it is."""
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            yield name, field.contents(), field.types


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, format: str) -> None:
    """Matrices in `format`, embeddings in 8 bits at least, vectors as float32."""
    if values.ndim == 1:
        writer.add_tensor(name, values.astype(np.float32))
        return
    kind = _QUANTISED[("q8_0" if name in _EMBEDDINGS and WIDTHS[format] == 4 else format).upper()]
    writer.add_tensor(name, quantize(values.astype(np.float32), kind), raw_dtype=kind)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_llama(target: Path, tokenizer_source: Path, shape: dict[str, int], vocab_size: int) -> None:
    """A Llama of a given shape with random weights in bf16, and the first tokens of another model's vocabulary."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(target, "llama", use_temp_file=True)
    for key, value in shape.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_uint32("llama.vocab_size", vocab_size)
    writer.add_file_type(_FILE_TYPES["bf16"])
    _add_tokenizer(writer, gguf.GGUFReader(tokenizer_source), vocab_size)
    for name, dims in _llama_tensors(shape, vocab_size):
        values = np.ones(dims) if len(dims) == 1 else 0.02 * rng.standard_normal(dims, np.float32)
        _add_tensor(writer, name, values, "bf16")
    _close(writer)


def _llama_tensors(shape: dict[str, int], vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape, rows first."""
    hidden, inner = shape["embedding_length"], shape["feed_forward_length"]
    kv = hidden // shape["attention.head_count"] * shape["attention.head_count_kv"]
    yield "token_embd.weight", (vocab_size, hidden)
    for i in range(shape["block_count"]):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (hidden,)
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden), ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden), ("ffn_down", hidden, inner),
        ):  # fmt: skip
            yield f"blk.{i}.{name}.weight", (rows, columns)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocab_size, hidden)


def _add_tokenizer(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, vocab_size: int) -> None:
    """The tokenizer of `reader`, cut to its first tokens and to the merges that stay within them."""
    kept = {name: (value, kinds) for name, value, kinds in _metadata(reader) if name.startswith("tokenizer.")}
    tokens = kept["tokenizer.ggml.tokens"][0][:vocab_size]
    known = set(tokens)
    for name, (value, kinds) in kept.items():
        if name == "tokenizer.ggml.merges":
            value = [merge for merge in value if merge.replace(" ", "") in known and known.issuperset(merge.split(" "))]
        elif kinds[0] == gguf.GGUFValueType.ARRAY:
            value = value[:vocab_size]
        _add_entry(writer, name, value, kinds)


def export_huggingface(source: Path, directory: Path) -> None:
    """Write the model as transformers reads it, its weights rounded to bf16."""
    checkpoint = open_checkpoint(source)
    directory.mkdir(parents=True, exist_ok=True)
    _write_safetensors(directory / "model.safetensors", checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    special = {name: str(token) for name, token in tokenizer.special_tokens.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {**{k: v for k, v in checkpoint.config.items() if v is not None}, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))


def _write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Every tensor in bf16: the header's length in 8 bytes, the header in JSON, the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in checkpoint.tensors():
        shape = checkpoint.get(name).shape
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in checkpoint.tensors():
            file.write(quantize(np.atleast_2d(checkpoint.get(name).float32()), _QUANTISED.BF16).tobytes())
