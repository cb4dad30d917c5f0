"""Every switch again, through `LLM` on the cpu target: greedy tokens at float32 are those of transformers.

Checked in one forward of the oracle, token by token, as in `test_smollm2`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.gguf_files import write_gguf
from tests.e2e.test_models import CASES, hf_logits, random_tokens
from tests.tiny import make_checkpoint, save_tokenizer

NEAR_TIE = 1e-4


def generate(model: Path, prompts: list[list[int]], num_tokens: int, **options: Any) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    settings = {"device": "cpu", "max_model_len": 128, "max_num_seqs": 2, "skip_tokenizer_init": True, **options}
    llm = LLM(model=str(model), **settings)
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def assert_greedy(source: Path, prompt: list[int], generated: list[int]) -> None:
    logits = hf_logits(source, prompt + generated)[len(prompt) - 1 : -1]
    margin = logits.max(axis=1) - logits[np.arange(len(generated)), generated]
    assert margin.max() <= NEAR_TIE, (generated, margin)


@pytest.mark.parametrize(
    ("family", "switch", "overrides"), CASES, ids=[f"{family}-{name}" for family, name, _ in CASES]
)
def test_greedy_tokens(family: str, switch: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, family, **overrides)
    prompts = [random_tokens(length, seed=length) for length in (5, 33, 70)]
    for prompt, tokens in zip(prompts, generate(directory, prompts, 24, dtype="float32"), strict=True):
        assert len(tokens) == 24
        assert_greedy(directory, prompt, tokens)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_float32_gguf_file_gives_the_tokens_of_its_source(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "hf", family)
    write_gguf(tmp_path / "model.gguf", directory, "F32")
    prompts = [random_tokens(length, seed=length) for length in (5, 33)]
    expected = generate(directory, prompts, 16, dtype="float32")
    assert generate(tmp_path / "model.gguf", prompts, 16, dtype="float32") == expected


def test_an_unsupported_architecture_is_refused_by_name(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path)
    save_tokenizer(directory)
    config = (directory / "config.json").read_text().replace("LlamaForCausalLM", "LamaForCausalLM")
    (directory / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"architecture LamaForCausalLM; supported: .*\(nearest: LlamaForCausalLM\)"):
        generate(directory, [[1]], 1)
