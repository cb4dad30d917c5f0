"""EAGLE's graphs, in torch and natively, against an oracle without any cache: in chunks, over blocks, in batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.eagle import Oracle, make_eagle
from tests.kernels.models import make_step
from tests.tiny import VOCAB_SIZE, make_checkpoint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.draft import DraftCheckpoint
from vllm.targets.cpu.draft_graph import with_vocabulary
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.models.eagle import build_eagle, build_eagle3, tapped_layers, with_kept_states
from vllm.targets.cpu.ops import HiddenCache, NativeModel, ThreadPool
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.reference import ReferenceProgram, load_weights
from vllm.targets.cpu.step import Step

NUM_BLOCKS, BLOCK = 8, 16
CASES: dict[str, dict[str, Any]] = {
    "public": {},
    "public, fc with bias": {"bias": True},
    "input norm": {"input_norm": True},
    "inside model.": {"prefix": "model."},
    "NxDI's form": {"form": "nxdi"},
    "NxDI's form, some tokens": {"form": "nxdi", "draft_vocab": 75},
    "some tokens": {"draft_vocab": 100},
    "eagle3": {"method": "eagle3"},
    "eagle3, some tokens": {"method": "eagle3", "draft_vocab": 90},
    "eagle3, NxDI's form": {"method": "eagle3", "form": "nxdi", "bias": True},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("target"), num_hidden_layers=6, tie_word_embeddings=False)


@dataclass
class Graphs:
    target: Graph
    draft: Graph
    checkpoint: DraftCheckpoint


def build(target: Path, draft: Path, method: str) -> Graphs:
    own, theirs = open_checkpoint(draft), open_checkpoint(target)
    checkpoint = DraftCheckpoint(own, theirs)
    graph = {"eagle": build_eagle, "eagle3": build_eagle3}[method](own.config, None, checkpoint)
    graph = with_vocabulary(graph, checkpoint.draft_ids(), checkpoint.get(checkpoint.output_matrix).shape[0])
    kept = with_kept_states(build_graph(theirs.config), method, checkpoint)
    return Graphs(kept, graph, checkpoint)


class InTorch:
    """Programs by name, run by the reference."""

    def __init__(self, graphs: Graphs) -> None:
        hidden = torch.zeros(NUM_BLOCKS * BLOCK, graphs.target.buffers["hidden"].width)
        self.programs: dict[str, ReferenceProgram] = {}
        for name in ("target", "draft"):
            graph = getattr(graphs, name)
            weights = load_weights(graph, graphs.checkpoint)
            self.programs[name] = ReferenceProgram(graph, weights, NUM_BLOCKS, BLOCK, hidden_cache=hidden)

    def run(self, name: str, step: Step) -> np.ndarray:
        return self.programs[name].run(step)


class Native:
    """The same by the native core: two models, one hidden cache."""

    def __init__(self, graphs: Graphs, tmp_path: Path, isa: str) -> None:
        hidden = HiddenCache(NUM_BLOCKS * BLOCK, graphs.target.buffers["hidden"].width)
        self.programs: dict[str, tuple[NativeModel, int]] = {}
        for name in ("target", "draft"):
            graph = getattr(graphs, name)
            path = tmp_path / f"{name}.bin"
            index = pack(graph, graphs.checkpoint, "f32", path)
            blocks = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK, "max_context": NUM_BLOCKS * BLOCK}
            model = NativeModel(
                path, index, **graph.shape, **blocks, kv_dtype="f32", pool=ThreadPool(2), isa=isa, hidden=hidden
            )
            self.programs[name] = model, model.add_program(plan(graph, 64, 8))

    def run(self, name: str, step: Step) -> np.ndarray:
        model, program = self.programs[name]
        logits = model.run(program, step, want_logits=True).logits
        assert logits is not None
        return logits


Runner = InTorch | Native


@dataclass
class Sequence:
    """Tokens, all but the last computed by the target; the draft has pairs up to `num_drafted`."""

    tokens: list[int]
    blocks: list[int]
    num_paired: int = 0


def prefill(runner: Runner, sequence: Sequence, chunk: int) -> None:
    """The target reads all but the last token, chunk by chunk; the draft follows it, but leaves out the last chunk."""
    computed = sequence.tokens[:-1]
    for start in range(0, len(computed), chunk):
        step = make_step([(computed[start : start + chunk], start, sequence.blocks)], BLOCK)
        runner.run("target", step)
        if start + chunk < len(computed):
            runner.run("draft", unselected(step))
            sequence.num_paired = start + chunk


def unselected(step: Step) -> Step:
    nothing = np.zeros(0, np.int32)
    return replace(step, selected=nothing, selected_row=nothing, given_token=nothing)


def draft(runner: Runner, sequences: list[Sequence], count: int) -> list[list[int]]:
    """Pass by pass for all sequences together; the first also takes the pairs that are missing."""
    found: list[list[int]] = [[] for _ in sequences]
    for number in range(count):
        rows = []
        for sequence, drafts in zip(sequences, found, strict=True):
            known = sequence.tokens + drafts
            start = len(known) - 1 if number else sequence.num_paired
            rows.append((known[start:], start, sequence.blocks))
        logits = runner.run("draft", make_step(rows, BLOCK))
        for drafts, token in zip(found, logits.argmax(-1).tolist(), strict=True):
            drafts.append(token)
    for sequence in sequences:
        sequence.num_paired = len(sequence.tokens)
    return found


def verify(runner: Runner, sequences: list[Sequence], drafts: list[list[int]]) -> None:
    """One pass of the target over last tokens and drafts; accepts, and adds the target's own next token."""
    rows = [([s.tokens[-1], *more], len(s.tokens) - 1, s.blocks) for s, more in zip(sequences, drafts, strict=True)]
    tokens = iter(runner.run("target", make_step(rows, BLOCK, "all")).argmax(-1).tolist())
    for sequence, proposed in zip(sequences, drafts, strict=True):
        sampled = [next(tokens) for _ in range(len(proposed) + 1)]
        matching = next((i for i, token in enumerate(proposed) if token != sampled[i]), len(proposed))
        sequence.tokens += sampled[: matching + 1]


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, length).tolist()


def check(runner: Runner, oracle: Oracle, chunk: int, rounds: int = 3, count: int = 3) -> None:
    sequences = [Sequence(prompt(21, 1), [5, 0, 3]), Sequence(prompt(1, 2), [7, 1]), Sequence(prompt(9, 3), [2, 6])]
    for sequence in sequences:
        prefill(runner, sequence, chunk)
    for _ in range(rounds):
        expected = [oracle.drafts(sequence.tokens, count) for sequence in sequences]
        drafts = draft(runner, sequences, count)
        assert drafts == expected
        # Half of the drafts are the target's own, so that runs of accepted ones occur.
        for sequence, proposed in zip(sequences[:2], drafts, strict=False):
            known = list(sequence.tokens)
            for i in range(count - 1):
                proposed[i] = oracle.next_token(known)
                known.append(proposed[i])
        before = [len(sequence.tokens) for sequence in sequences]
        verify(runner, sequences, drafts)
        for sequence, length in zip(sequences, before, strict=True):
            assert sequence.tokens[length:] == [
                oracle.next_token(sequence.tokens[:at]) for at in range(length, len(sequence.tokens))
            ]
    assert sum(len(sequence.tokens) for sequence in sequences[:2]) >= 22 + 2 * rounds * count


@pytest.mark.parametrize("case", CASES)
def test_the_graphs_draft_as_the_oracle_does(case: str, target: Path, tmp_path: Path) -> None:
    options = CASES[case]
    method = options.get("method", "eagle")
    directory = make_eagle(tmp_path / "eagle", target, **options)
    check(InTorch(build(target, directory, method)), Oracle(target, directory, method), chunk=100)


@pytest.mark.parametrize("case", ["public, fc with bias", "some tokens", "eagle3, some tokens"])
@pytest.mark.parametrize("chunk", [7, 64])
def test_the_native_core_drafts_as_the_oracle_does(
    case: str, chunk: int, isa: str, target: Path, tmp_path: Path
) -> None:
    options = CASES[case]
    method = options.get("method", "eagle")
    directory = make_eagle(tmp_path / "eagle", target, **options)
    check(Native(build(target, directory, method), tmp_path, isa), Oracle(target, directory, method), chunk)


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_keeping_states_changes_nothing_else(method: str, isa: str, target: Path, tmp_path: Path) -> None:
    directory = make_eagle(tmp_path / "eagle", target, method)
    graphs = build(target, directory, method)
    kept = Native(graphs, tmp_path, isa)
    plain = build_graph(open_checkpoint(target).config)
    path = tmp_path / "plain.bin"
    index = pack(plain, open_checkpoint(target), "f32", path)
    model = NativeModel(
        path, index, num_layers=6, num_kv_heads=plain.num_kv_heads, head_dim=plain.head_dim, vocab_size=VOCAB_SIZE,
        num_blocks=NUM_BLOCKS, block_size=BLOCK, max_context=NUM_BLOCKS * BLOCK, kv_dtype="f32", isa=isa,
    )  # fmt: skip
    step = make_step([(prompt(20, 1), 0, [3, 1]), (prompt(5, 2), 0, [0])], BLOCK, "all")
    logits = model.run(model.add_program(plan(plain, 64, 8)), step, want_logits=True).logits
    np.testing.assert_array_equal(kept.run("target", step), logits)


def test_entries_depend_on_no_later_token(target: Path, tmp_path: Path, isa: str) -> None:
    """Another sequence that shares a block finds in it what it would have written itself."""
    directory = make_eagle(tmp_path / "eagle", target)
    graphs = build(target, directory, "eagle")
    shared, rest = prompt(BLOCK, 1), prompt(6, 2)
    alone = Native(graphs, tmp_path, isa)
    whole = Sequence(shared + rest, [4, 5])
    prefill(alone, whole, 64)
    expected = draft(alone, [whole], 3)

    reused = Native(graphs, tmp_path, isa)
    prefill(reused, Sequence([*shared, *prompt(9, 3)], [0, 1]), BLOCK)
    reused.run("target", make_step([(rest[:-1], BLOCK, [0, 2])], BLOCK))
    assert draft(reused, [Sequence(shared + rest, [0, 2], BLOCK)], 3) == expected


def test_eagle3_taps_the_layers_that_others_do() -> None:
    assert tapped_layers(32) == (1, 15, 28)
    with pytest.raises(ValueError, match="at least 6; it has 4"):
        tapped_layers(4)


def test_checkpoints_that_are_no_drafts_are_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not an EAGLE draft: it has no tensor 'fc\.weight'"):
        DraftCheckpoint(open_checkpoint(target), open_checkpoint(target))
    directory = make_eagle(tmp_path / "eagle", target, draft_vocab=10)
    draft = DraftCheckpoint(open_checkpoint(directory), open_checkpoint(target))
    assert draft.draft_ids() == sorted(draft.draft_ids())
    with pytest.raises(CheckpointError, match=r"the draft .* has no tensor 'lm_head.bias'"):
        draft.get("draft.lm_head.bias")
    with pytest.raises(ValueError, match="token 4000, its target only"):
        with_vocabulary(build(target, directory, "eagle").draft, [1, 4000], 2)
