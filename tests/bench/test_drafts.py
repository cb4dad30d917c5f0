"""Training of drafts: heads against the oracle, what is learnt, and checkpoints that the package takes for drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import train_drafts
from drafts import corpus, features, saving
from drafts.heads import Eagle, Eagle3, Head
from drafts.target import load_target
from drafts.training import Schedule, Task, agreement, train

from tests.eagle import Oracle, make_eagle
from tests.tiny import VOCAB_SIZE, make_checkpoint
from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.draft import DraftCheckpoint


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("target"), num_hidden_layers=6, tie_word_embeddings=False)


def load_head(head: Head, directory: Path) -> Head:
    stored = {name: open_checkpoint(directory).get(name).float32() for name in open_checkpoint(directory).tensors()}
    head.load_state_dict({name: torch.from_numpy(stored[name].copy()) for name in head.state_dict()})
    return head


def sequences(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (40 + i,), generator=generator).tolist() for i in range(count)]


@pytest.mark.parametrize("method", ["eagle", "eagle, input norm", "eagle3"])
@torch.inference_mode()
def test_unrolled_steps_are_drafts_in_a_row(method: str, target: Path, tmp_path: Path) -> None:
    """Where the text goes on with the drafts themselves, step j at a position is the oracle's draft j + 1."""
    method, _, norm = method.partition(", ")
    directory = make_eagle(tmp_path / "eagle", target, method, input_norm=bool(norm))
    oracle, model = Oracle(target, directory, method), load_target(target)
    config = model.config
    head = load_head(Eagle3(config, VOCAB_SIZE) if method == "eagle3" else Eagle(config, bool(norm)), directory)
    known = sequences(1)[0][:17]
    drafts = oracle.drafts(known, 4)
    text = known + drafts
    data = features.collect(target, [text])
    read = (data.auxiliary if method == "eagle3" else data.hidden)[:, : len(text)].float()
    embeddings = model.model.embed_tokens.weight[torch.tensor([text])]
    output = head.lm_head.weight if method == "eagle3" else model.lm_head.weight
    made = [
        int((states[0, len(known) - 1 + j] @ output.T).argmax())
        for j, states in enumerate(head.states(embeddings, read, 4))
    ]
    assert made == drafts


def test_a_head_learns_what_its_target_says(target: Path) -> None:
    torch.manual_seed(0)
    model = load_target(target)
    data = features.collect(target, sequences(6))
    ids = torch.arange(0, VOCAB_SIZE, 2)
    rows = model.lm_head.weight[ids]
    task = Task(
        Eagle(model.config), "hidden", model.model.embed_tokens.weight, model.lm_head.weight, lambda x: x @ rows.T, ids
    )
    lines: list[str] = []
    before = agreement(task, data, 2)
    train(task, data, Schedule(60, batch=3, learning_rate=3e-3), lines.append)
    after = agreement(task, data, 2)
    assert after[0] > before[0] + 0.2
    first, last = (float(line.split("loss ")[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < first


def test_everything_is_made_once(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = dict.fromkeys(train_drafts.KINDS, 1)
    settings = {
        "questions": 0, "answer_len": 8, "text_windows": 3, "draft_vocab_size": 64, "draft_layers": [0, 5],
        "updates": updates,
    }  # fmt: skip
    monkeypatch.setattr(train_drafts, "MEASURED_WINDOWS", 1)
    monkeypatch.setitem(train_drafts.SETTINGS, "smollm2", settings)
    made = train_drafts.make_drafts(str(target), cache=tmp_path)
    theirs = open_checkpoint(target)
    for kind in ("eagle", "eagle3"):
        draft = DraftCheckpoint(open_checkpoint(made[kind]["directory"]), theirs)
        assert len(draft.draft_ids()) == 64
        assert len(made[kind]["agreement"]) == train_drafts.UNROLL
    inside = DraftCheckpoint(open_checkpoint(Path(made["eagle"]["directory"]) / "nxdi"), theirs)
    assert (inside.embedding, inside.output_matrix) == ("draft.embed_tokens.weight", "draft.lm_head.weight")
    assert inside.draft_ids() == []
    shallow = open_checkpoint(made["draft"]["directory"])
    assert shallow.config["num_hidden_layers"] == 2
    assert (
        shallow.get("model.embed_tokens.weight").float32() == theirs.get("model.embed_tokens.weight").float32()
    ).mean() > 0
    monkeypatch.setattr(train_drafts, "train", None)
    assert train_drafts.make_drafts(str(target), cache=tmp_path) == made


def test_nothing_that_is_measured_was_learnt() -> None:
    learnt, held_out = corpus.training(), corpus.held_out()
    assert not set(learnt.texts) & set(held_out.texts)
    assert not set(learnt.questions) & set(held_out.questions)
    assert len(held_out.questions) > 60


def test_offsets_name_the_targets_ids() -> None:
    ids = torch.tensor([3, 4, 9])
    assert saving.offsets_of(ids).tolist() == [3, 3, 7]
    assert saving.target_to_draft(ids, 11).nonzero().flatten().tolist() == [3, 4, 9]
