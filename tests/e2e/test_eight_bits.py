"""8- and 4-bit weights and KV, from a checkpoint to logits: against transformers on the rounded weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.test_models import hf_logits, random_tokens
from tests.e2e.test_models_through_the_engine import assert_greedy, generate
from tests.tiny import make_checkpoint

PROMPT = random_tokens(40, seed=3)
Scale = torch.Tensor


def by_tensor(weight: torch.Tensor, largest: float) -> Scale:
    return (weight.abs().max() / largest).reshape(1)


def by_row(weight: torch.Tensor, largest: float) -> Scale:
    return weight.abs().amax(dim=1, keepdim=True) / largest


def by_block(weight: torch.Tensor, largest: float) -> Scale:
    """Blocks of 32 x 128: the smallest that packed weights take as they are."""
    rows = -(-weight.shape[0] // 32)
    columns = [part.abs().reshape(rows, -1).amax(dim=1) for part in weight.split(128, dim=1)]
    return torch.stack(columns, dim=1) / largest


def spread(scale: Scale, shape: torch.Size) -> torch.Tensor:
    if scale.ndim < 2:
        return scale.expand(shape)
    rows, columns = -(-shape[0] // scale.shape[0]), -(-shape[1] // scale.shape[1])
    columns = 128 if scale.shape[1] > 1 else columns
    return scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: shape[0], : shape[1]]


def to_f8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def to_int8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).round().clamp(-127, 127).to(torch.int8)


def rewrite(source: Path, target: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """The checkpoint with other tensors and further entries of its config."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "model.safetensors" and file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    settings = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(settings))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def logits_of(model: Path, **options: Any) -> np.ndarray:
    """Log-probabilities of all tokens after each of the prompt's, through the engine."""
    from vllm import LLM, SamplingParams

    settings = {
        "device": "cpu",
        "max_model_len": 128,
        "max_num_seqs": 2,
        "skip_tokenizer_init": True,
        "max_logprobs": -1,
    }
    llm = LLM(model=str(model), **settings, **options)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    rows = [entry for entry in output.prompt_logprobs if entry is not None]
    return np.array([[row[i].logprob for i in range(len(row))] for row in rows])


def expected_logprobs(model: Path) -> np.ndarray:
    logits = torch.from_numpy(hf_logits(model, PROMPT))
    return np.asarray(logits.log_softmax(dim=-1).numpy()[:-1])


# What a checkpoint brings.

Stored = dict[str, torch.Tensor]
"""What lies in the file for a matrix, by the last part of its name."""
Encode = Callable[[torch.Tensor], tuple[Stored, torch.Tensor]]
"""A matrix as stored, and the values that this stands for."""


def scaled(
    round_to: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scale_of: Any, largest: float, suffix: str
) -> Encode:
    def encode(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        scale = scale_of(weight, largest)
        codes = round_to(weight, spread(scale, weight.shape))
        return {"weight": codes, suffix: scale}, codes.float() * spread(scale, weight.shape)

    return encode


def int8_by_group(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    groups = weight.unflatten(1, (-1, 32))
    scale = (groups.abs().amax(dim=2) / 127).half()
    codes = to_int8(groups, scale.float()[..., None])
    return {"weight": codes.flatten(1), "weight_scale": scale}, (codes.float() * scale.float()[..., None]).flatten(1)


def int8_with_zero_points(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    least = weight.amin(dim=1, keepdim=True) - 0.3
    scale = (weight.amax(dim=1, keepdim=True) - least) / 255
    zero = (-128 - least / scale).round().clamp(-128, 127)
    codes = (weight / scale + zero).round().clamp(-128, 127)
    stored = {"weight": codes.to(torch.int8), "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    return stored, (codes - zero) * scale


def int8_with_zeros_for_zero_points(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    stored, values = scaled(to_int8, by_row, 127.0, "weight_scale")(weight)
    return stored | {"weight_zero_point": torch.zeros_like(stored["weight_scale"], dtype=torch.int8)}, values


def f8_with_powers_of_two(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    exponents = by_block(weight, 448.0).log2().ceil()
    scale = spread(exponents.exp2(), weight.shape)
    codes = to_f8(weight, scale)
    return {"weight": codes, "weight_scale_inv": exponents.exp2().to(torch.float8_e8m0fnu)}, codes.float() * scale


def f8_of_two_mantissa_bits(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    scale = by_row(weight, 57344.0)
    codes = (weight / scale).to(torch.float8_e5m2)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


FORMS: dict[str, tuple[Encode, str]] = {
    "f8 by tensor": (scaled(to_f8, by_tensor, 448.0, "weight_scale"), "f8"),
    "f8 by row": (scaled(to_f8, by_row, 448.0, "weight_scale"), "f8"),
    "f8 by block": (scaled(to_f8, by_block, 448.0, "weight_scale_inv"), "f8_block"),
    "f8 by block, powers of two": (f8_with_powers_of_two, "f8_block"),
    "f8 of two mantissa bits": (f8_of_two_mantissa_bits, "bf16"),
    "int8 by tensor": (scaled(to_int8, by_tensor, 127.0, "scale"), "int8"),
    "int8 by row": (scaled(to_int8, by_row, 127.0, "weight_scale"), "int8"),
    "int8 by group": (int8_by_group, "int8_group"),
    "int8 with zero points": (int8_with_zero_points, "bf16"),
    "int8 with zeros for zero points": (int8_with_zeros_for_zero_points, "int8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_with_scales(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # M1, M6
    encode, packed = FORMS[form]
    shape = {"hidden_size": 160, "intermediate_size": 288, "num_attention_heads": 5, "num_key_value_heads": 5}
    source = make_checkpoint(tmp_path / "source", **shape)
    stored, values = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name] = values[name] = tensor
        if name.endswith("proj.weight"):
            parts, values[name] = encode(tensor)
            stored |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
    quantised = rewrite(source, tmp_path / "q", stored, quantization_config={"weight_block_size": [32, 128]})
    oracle = rewrite(source, tmp_path / "values", values)

    # Everything float32: the values are those of the codes and scales.
    (tokens,) = generate(quantised, [PROMPT], 16, dtype="float32")
    assert_greedy(oracle, PROMPT, tokens)

    # As stored: the codes go into the artifact.
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "artifacts"))
    near = logits_of(quantised)
    formats = {
        name: entry["format"]
        for index in (tmp_path / "artifacts").glob("*/index.json")
        for name, entry in json.loads(index.read_text())["weights"].items()
    }
    assert {formats["layers.0.qkv"], formats["layers.1.down"]} == {packed}
    assert np.abs(near - expected_logprobs(oracle)).mean() < (0.1 if packed.startswith("f8") else 0.2)


def test_integers_without_scales_are_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    with pytest.raises(ValueError, match=r"up_proj\.weight holds 8-bit integers, and none of .*up_proj\.weight_scale"):
        generate(rewrite(source, tmp_path / "q", tensors), [PROMPT], 1)


def test_zero_points_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    parts, _ = int8_with_zero_points(tensors[name])
    tensors |= {name: parts["weight"], f"{name}_scale": parts["weight_scale"]}
    tensors[f"{name}_zero_point"] = parts["weight_zero_point"][:5].clone()
    with pytest.raises(
        ValueError, match=r"zero_point is i8 of shape \(5, 1\); expected integers of the shape \(128, 1\)"
    ):
        generate(rewrite(source, tmp_path / "q", tensors), [PROMPT], 1)


@pytest.mark.parametrize("shape", [(3,), (2, 7), (128, 3)])
def test_scales_of_no_meaning_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = make_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale"] = torch.ones(shape)
    with pytest.raises(ValueError, match=r"fits .* neither by tensor, by row, by group, nor in blocks of 128 x 128"):
        generate(rewrite(source, tmp_path / "q", tensors), [PROMPT], 1)


# What the Neuron config asks of a plain checkpoint.


def int4_values(weight: torch.Tensor) -> torch.Tensor:
    """Groups of 32 between their least and greatest values, in 16 steps; scale and least value in half precision."""
    groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32)).unflatten(1, (-1, 32))
    least = groups.amin(dim=2, keepdim=True).half().float()
    scale = ((groups.amax(dim=2, keepdim=True) - least) / 15).half().float()
    codes = ((groups - least) / torch.where(scale == 0, 1, scale)).round().clamp(0, 15)
    return (codes * scale + least).flatten(1)[:, : weight.shape[1]]


def rounded(dtype: str, kind: str, weight: torch.Tensor) -> torch.Tensor:
    if dtype == "int4":
        return int4_values(weight)
    round_to, largest = {"int8": (to_int8, 127.0), "f8e4m3": (to_f8, 448.0)}[dtype]
    scale = spread({"tensor": by_tensor, "channel": by_row}[kind](weight, largest), weight.shape)
    return round_to(weight, scale).float() * scale


@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    [
        ("f8e4m3", "tensor", 1e-3),
        ("f8e4m3", "channel", 1e-3),
        ("int8", "tensor", 0.1),
        ("int8", "channel", 0.1),
        ("int4", "channel", 0.1),
    ],
)
def test_weights_rounded_on_request(dtype: str, kind: str, tolerance: float, tmp_path: Path) -> None:
    """Inputs stay float32 beside 8-bit floats, so results are near; beside integers they are rounded to 8 bits."""
    source = make_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    values = {name: rounded(dtype, kind, each) if each.ndim == 2 else each for name, each in tensors.items()}
    asked = {"quantized": True, "quantization_dtype": dtype, "quantization_type": f"per_{kind}_symmetric"}
    logprobs = logits_of(source, dtype="float32", override_neuron_config=asked)
    expected = expected_logprobs(rewrite(source, tmp_path / "values", values))
    assert np.abs(logprobs - expected).mean() < tolerance
    assert np.abs(logprobs - expected_logprobs(source)).mean() > 1e-3


# 8-bit KV.


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_kv_cache_of_8_bits(dtype: str, tiny_llama: Path) -> None:
    prompts = [random_tokens(length, seed=length) for length in (5, 33, 70)]
    alone = [generate(tiny_llama, [prompt], 16, kv_cache_dtype=dtype)[0] for prompt in prompts]
    assert generate(tiny_llama, prompts, 16, kv_cache_dtype=dtype) == alone
    chunked = {"enable_prefix_caching": True, "enable_chunked_prefill": True, "max_num_batched_tokens": 16}
    assert generate(tiny_llama, prompts, 16, kv_cache_dtype=dtype, **chunked) == alone
    exact, near = expected_logprobs(tiny_llama), logits_of(tiny_llama, dtype="float32", kv_cache_dtype=dtype)
    assert 1e-4 < np.abs(near - exact).mean() < {"fp8": 0.1, "int8": 0.02}[dtype]


@pytest.mark.parametrize("entry", [{"kv_cache_quant": True}, {"kv_quant_config": {}}])
def test_the_librarys_names_mean_the_same(entry: dict[str, Any], tiny_llama: Path) -> None:
    by_option = generate(tiny_llama, [PROMPT], 16, kv_cache_dtype="fp8")
    assert generate(tiny_llama, [PROMPT], 16, override_neuron_config=entry) == by_option
