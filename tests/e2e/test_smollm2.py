"""SmolLM2-135M-Instruct: greedy tokens equal those of transformers at float32 on the dequantised weights.

The oracle checks a whole continuation in one forward: if every token is the oracle's most likely one after the tokens
before it, then the oracle's own greedy continuation is that one. Two logits closer than `NEAR_TIE` are a near-tie,
which the order of float32 sums may decide either way; what follows one still has to agree, as it is checked in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.e2e.steps import greedy, make_step
from tests.hf import load_model
from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.reference import ReferenceProgram, load_weights

NEAR_TIE = 1e-3
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "The three primary colours are red,",
    "Water boils at 100 degrees",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 12 * 12?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate to French: good morning<|im_end|>\n<|im_start|>assistant\n",
    "1, 1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\nI am writing to",
    "import numpy as np\n\nx = np.",
    "日本の首都は",
    "Q: Who wrote Hamlet?\nA:",
    "In 1969, the first",
    "<html>\n<head>\n<title>",
    "SELECT name, age FROM",
    "The mitochondria is",
    "To be, or not to be:",
    "🙂 means",
    "A",
]


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> transformers.PreTrainedModel:
    return load_model(smollm2.parent, torch.float32, gguf_file=smollm2.name).eval()


@pytest.fixture(scope="module")
def prompt_ids(smollm2: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(smollm2).backend
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


def oracle_logits(oracle: transformers.PreTrainedModel, token_ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        return oracle(torch.tensor([token_ids])).logits[0].numpy()


def assert_greedy(oracle: transformers.PreTrainedModel, prompt: list[int], generated: Sequence[int]) -> int:
    """Every generated token is the oracle's choice. Returns how many were near-ties decided the other way."""
    logits = oracle_logits(oracle, [*prompt, *generated])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(generated)), generated]
    margin = logits.max(axis=1) - chosen
    assert margin.max() <= NEAR_TIE, (
        f"token {margin.argmax()} of {list(generated)} is {margin.max()} below the oracle's best"
    )
    return int(np.count_nonzero(margin))


def test_weights_equal_transformers(oracle: transformers.PreTrainedModel, smollm2: Path) -> None:
    checkpoint, expected = open_checkpoint(smollm2), oracle.state_dict()
    assert set(checkpoint.tensors()) == set(expected) - {"lm_head.weight"}
    for name in checkpoint.tensors():
        np.testing.assert_array_equal(checkpoint.get(name).float32(), expected[name].numpy(), err_msg=name)


def test_reference(oracle: transformers.PreTrainedModel, prompt_ids: list[list[int]], smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    graph = build_graph(checkpoint.config)
    program = ReferenceProgram(graph, load_weights(graph, checkpoint), num_blocks=8, block_size=16)
    blocks = np.array([[5, 2, 7, 0, 3, 1, 6, 4]])

    longest = max(prompt_ids, key=len)
    logits = program.run(make_step([(longest, 0)], blocks, 16))
    np.testing.assert_allclose(logits, oracle_logits(oracle, longest), atol=2e-3, rtol=1e-4)
    for prompt in prompt_ids[:4]:
        assert assert_greedy(oracle, prompt, greedy(program, prompt, 16, blocks)) == 0


def test_engine(oracle: transformers.PreTrainedModel, prompt_ids: list[list[int]], smollm2: Path) -> None:
    """All prompts at once through the engine on the cpu target, 64 tokens each."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(smollm2), device="cpu", dtype="float32", max_model_len=128, max_num_seqs=8)
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], params)
    near_ties = 0
    for prompt, output in zip(prompt_ids, outputs, strict=True):
        assert len(output.outputs[0].token_ids) == 64
        near_ties += assert_greedy(oracle, prompt, output.outputs[0].token_ids)
    assert near_ties <= 2


def test_lookups_change_no_token(prompt_ids: list[list[int]], smollm2: Path) -> None:
    """Quantised weights as they are served; texts that repeat themselves and others, greedy and drawn."""
    from vllm import LLM, SamplingParams

    prompts = [prompt_ids[2], prompt_ids[5], prompt_ids[8], prompt_ids[1] * 4, prompt_ids[0] * 5]
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=40, ignore_eos=True, logprobs=1)
        for i in range(len(prompts))
    ]
    told, num_accepted = [], 0
    for speculation in (None, {"method": "ngram", "num_speculative_tokens": 6, "adaptive": False}):
        llm = LLM(
            model=str(smollm2), device="cpu", max_model_len=128, max_num_seqs=3, speculative_config=speculation
        )  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        told.append([(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs])
        metrics = [output.outputs[0].spec_decode_metrics for output in outputs]
        num_accepted = sum(each.num_accepted_tokens for each in metrics if each)
    assert told[0] == told[1]
    assert num_accepted > 30
