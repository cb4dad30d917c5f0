"""What a draft learns from: the target's own continuations, and its hidden states on them, in windows of one length.

A window begins a sequence. Generated windows are a chat prompt and the target's answer; the others are pieces of text
as they stand, so that the draft also learns to follow text that the target would not have written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tokenizers
import torch

from vllm.checkpoint import open_checkpoint
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.models.eagle import tapped_layers
from vllm.targets.cpu.ops import NativeModel
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.step import Step

WINDOW = 192


@dataclass(slots=True)
class Features:
    """tokens: int64 [windows, WINDOW]; lengths: real tokens of each window.

    hidden: float16 [windows, WINDOW, hidden], after the final norm. auxiliary: float16 [windows, WINDOW, 3 hidden],
    what EAGLE-3 reads; without columns if it was not asked for.
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


def collect(model: str | Path, sequences: list[list[int]], auxiliary: bool = True, batch: int = 8) -> Features:
    """Run the target over the sequences, by the kernels that will serve it."""
    with TemporaryDirectory() as folder:
        states = _States(model, Path(folder), auxiliary, batch)
        count, width = len(sequences), states.width
        features = Features(
            torch.zeros(count, WINDOW, dtype=torch.int64),
            torch.tensor([len(sequence) for sequence in sequences]),
            torch.zeros(count, WINDOW, width, dtype=torch.float16),
            torch.zeros(count, WINDOW, 3 * width * auxiliary, dtype=torch.float16),
        )
        started = time.perf_counter()
        for start in range(0, count, batch):
            rows = sequences[start : start + batch]
            final, *taps = states.of(rows)
            tapped = np.concatenate(taps, axis=1) if taps else final[:, :0]
            for i, (row, begin) in enumerate(zip(rows, np.cumsum([0, *map(len, rows)]), strict=False), start):
                part = slice(begin, begin + len(row))
                features.tokens[i, : len(row)] = torch.tensor(row)
                features.hidden[i, : len(row)] = torch.from_numpy(final[part])
                features.auxiliary[i, : len(row)] = torch.from_numpy(tapped[part])
            if start // batch % 10 == 0:
                print(f"features: {start} of {count} windows, {time.perf_counter() - started:.0f} s", flush=True)
    return features


class _States:
    """The target's hidden states: after the final norm, and after the three layers that EAGLE-3 taps, if wanted.

    Each is the result of a program of its own, which ends there, over a KV cache of the layers up to there.
    """

    def __init__(self, path: str | Path, folder: Path, auxiliary: bool, rows: int) -> None:
        checkpoint = open_checkpoint(path)
        graph = build_graph(checkpoint.config, WINDOW)
        self.width = graph.buffers["hidden"].width
        index = pack(graph, checkpoint, "native", folder / "weights.bin")
        taps = tapped_layers(graph.num_layers) if auxiliary else ()
        self.models = []
        for each in (_final_states(graph), *(_states_after(graph, layer) for layer in taps)):
            model = NativeModel(
                folder / "weights.bin", index, **each.shape, num_blocks=rows, block_size=WINDOW, max_context=WINDOW
            )
            model.add_program(plan(each, rows * WINDOW, 1))
            self.models.append(model)

    def of(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """float32 [tokens of all sequences, width] each."""
        step = _whole_prompts(sequences)
        outputs = [model.run(0, step, want_logits=True).logits for model in self.models]
        return [output for output in outputs if output is not None]


def _final_states(graph: Graph) -> Graph:
    """The final norm, of every token."""
    end = next(i for i, op in enumerate(graph.ops) if op.kind == "select")
    norm = next(op for op in graph.ops if op.weights == ("final_norm",))
    return replace(graph, ops=[*graph.ops[:end], replace(norm, inputs=("hidden",), output="normed")])


def _states_after(graph: Graph, layer: int) -> Graph:
    end = next(i for i, op in enumerate(graph.ops) if op.weights[:1] == (f"layers.{layer}.down",))
    return replace(graph, ops=graph.ops[: end + 1], num_layers=layer + 1)


def _whole_prompts(sequences: list[list[int]]) -> Step:
    """Row i in block i; nothing is sampled."""
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    row = np.repeat(np.arange(len(sequences)), lengths)

    def int32(values: object) -> np.ndarray:
        return np.ascontiguousarray(values, np.int32)

    nothing = int32([])
    return Step(
        token_ids=int32([token for sequence in sequences for token in sequence]), positions=int32(positions),
        slots=int32(row * WINDOW + positions), row_start=int32(starts), context_len=int32(lengths),
        block_table=int32(np.arange(len(sequences))[:, None]),
        selected=nothing, selected_row=nothing, given_token=nothing,
    )  # fmt: skip


def frequent_tokens(sequences: list[list[int]], size: int, always: list[int]) -> np.ndarray:
    """The ids that occur most, and those in `always`, ascending; filled up with the lowest ids."""
    counts = Counter(token for sequence in sequences for token in sequence)
    ranked = [*always, *(token for token, _ in counts.most_common()), *range(size)]
    return np.sort(np.fromiter(dict.fromkeys(ranked), np.int64)[:size])


def save(features: Features, path: Path) -> None:
    torch.save({name: getattr(features, name) for name in Features.__slots__}, path)


def load(path: Path) -> Features:
    return Features(**torch.load(path, weights_only=True))
