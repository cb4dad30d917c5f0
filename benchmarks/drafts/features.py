"""What a draft learns from: the target's own continuations, and its hidden states on them, in windows of one length.

A window begins a sequence. Generated windows are a chat prompt and the target's answer; the others are pieces of text
as they stand, so that the draft also learns to follow text that the target would not have written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from drafts.target import auxiliary_layers

WINDOW = 192


@dataclass(slots=True)
class Features:
    """tokens: int64 [windows, WINDOW]; lengths: real tokens of each window.

    hidden: float16 [windows, WINDOW, hidden], after the final norm. auxiliary: float16 [windows, WINDOW, 3 hidden],
    what EAGLE3 reads.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    hidden: torch.Tensor
    auxiliary: torch.Tensor

    @property
    def num_windows(self) -> int:
        return len(self.tokens)

    def split(self, at: int) -> tuple[Features, Features]:
        parts = (self.tokens, self.lengths, self.hidden, self.auxiliary)
        return Features(*(part[:at] for part in parts)), Features(*(part[at:] for part in parts))


def generate(model: str, questions: list[str], answer_len: int, rows: int = 32) -> list[list[int]]:
    """Token ids of chat prompts with the target's answers: greedy and drawn at temperature 0.8 in turn."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model, device="cpu", max_num_seqs=rows, max_model_len=WINDOW + answer_len + 256,
        enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in questions
    ]
    prompts = [list(prompt) for prompt in prompts if len(prompt) + answer_len <= WINDOW]
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=answer_len, detokenize=False)
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    return [prompt + list(output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)]


def windows_of_text(texts: list[str], tokenizer: tokenizers.Tokenizer, count: int) -> list[list[int]]:
    """The first `count` windows of the texts, taken in turn."""
    queues = [_pieces(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    found: list[list[int]] = []
    while queues and len(found) < count:
        for queue in list(queues):
            piece = next(queue, None)
            if piece is None:
                queues.remove(queue)
            else:
                found.append(piece)
    return found[:count]


def _pieces(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        yield list(ids[start : start + WINDOW])


@torch.inference_mode()
def collect(target: transformers.LlamaForCausalLM, sequences: list[list[int]], batch: int = 8) -> Features:
    """Run the target over the sequences."""
    count, width = len(sequences), target.config.hidden_size
    features = Features(
        torch.zeros(count, WINDOW, dtype=torch.int64),
        torch.tensor([len(sequence) for sequence in sequences]),
        torch.zeros(count, WINDOW, width, dtype=torch.float16),
        torch.zeros(count, WINDOW, 3 * width, dtype=torch.float16),
    )
    for i, sequence in enumerate(sequences):
        features.tokens[i, : len(sequence)] = torch.tensor(sequence)
    taps = auxiliary_layers(target.config.num_hidden_layers)
    started = time.perf_counter()
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        states = target.model(features.tokens[part], output_hidden_states=True, use_cache=False).hidden_states
        features.hidden[part] = states[-1].half()
        features.auxiliary[part] = torch.cat([states[i] for i in taps], dim=-1).half()
        if start // batch % 10 == 0:
            print(f"features: {start} of {count} windows, {time.perf_counter() - started:.0f} s", flush=True)
    return features


def frequent_tokens(sequences: list[list[int]], size: int, always: list[int]) -> np.ndarray:
    """The ids that occur most, and those in `always`, ascending; filled up with the lowest ids."""
    counts = Counter(token for sequence in sequences for token in sequence)
    ranked = [*always, *(token for token, _ in counts.most_common()), *range(size)]
    return np.sort(np.fromiter(dict.fromkeys(ranked), np.int64)[:size])


def save(features: Features, path: Path) -> None:
    torch.save({name: getattr(features, name) for name in Features.__slots__}, path)


def load(path: Path) -> Features:
    return Features(**torch.load(path, weights_only=True))
