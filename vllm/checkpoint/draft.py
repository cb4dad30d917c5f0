"""`DraftCheckpoint`: an EAGLE draft's tensors under one spelling, beside those of its target.

Drafts come in three spellings: public EAGLE (`fc.weight`, `layers.0...`), EAGLE-3 (`midlayer...`), and either of them
under `model.`; NxD Inference's have `embed_tokens.weight` and `lm_head.weight` inside, which others take from the
target. Here a draft's tensor is `draft.` and its name in the first spelling; every other name is the target's.

`d2t`, int64 [draft vocabulary]: the draft's id i is the target's id i + d2t[i]. EAGLE-3 checkpoints have it. A draft of
any other kind may have it too: then only those rows of its output matrix are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vllm.checkpoint.checkpoint import Checkpoint
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.tensor import Tensor

DRAFT = "draft."
_TARGETS_EMBEDDING = "model.embed_tokens.weight"
_TARGETS_OUTPUT = "lm_head.weight"


class DraftCheckpoint:
    """What `packing.pack` and `models.eagle` ask of a checkpoint, over two of them."""

    def __init__(self, draft: Checkpoint, target: Checkpoint) -> None:
        self.path: Path = draft.path
        self._draft, self._target = draft, target
        self._own = {DRAFT + _spelled(name): name for name in draft.tensors()}
        for name in ("fc.weight", "layers.0.self_attn.q_proj.weight"):
            if DRAFT + name not in self._own:
                raise CheckpointError(f"{draft.path} is not an EAGLE draft: it has no tensor {name!r}")
        self.embedding = self._own_or(f"{DRAFT}embed_tokens.weight", _TARGETS_EMBEDDING)
        output = _TARGETS_OUTPUT if _TARGETS_OUTPUT in target else _TARGETS_EMBEDDING
        self.output_matrix = self._own_or(f"{DRAFT}lm_head.weight", output)

    def __contains__(self, name: str) -> bool:
        return name in self._own if name.startswith(DRAFT) else name in self._target

    def get(self, name: str) -> Tensor:
        """A tensor of either. Raises CheckpointError for a name that is not there."""
        owner, own = self.locate(name)
        return owner.get(own)

    def locate(self, name: str) -> tuple[Checkpoint, str]:
        """Whose a tensor is, and its name there. Raises CheckpointError for a name that is not there."""
        if not name.startswith(DRAFT):
            return self._target.locate(name)
        if name not in self._own:
            raise CheckpointError(f"the draft {self.path} has no tensor {name.removeprefix(DRAFT)!r}")
        return self._draft, self._own[name]

    def draft_ids(self) -> list[int]:
        """The target's ids of the draft's vocabulary, in its order; empty if they are the same."""
        name = f"{DRAFT}d2t"
        return read_draft_ids(self.get(name), self.path) if name in self._own else []

    def _own_or(self, own: str, targets: str) -> str:
        return own if own in self._own else targets


def read_draft_ids(d2t: Tensor, path: Path) -> list[int]:
    """Ids out of a `d2t`. Raises CheckpointError unless they ascend, as a map of one vocabulary into another must."""
    if d2t.format not in ("i64", "i32") or len(d2t.shape) != 1:
        raise CheckpointError(f"{path}: d2t must be a vector of integers, not {d2t.format} of shape {d2t.shape}")
    offsets = d2t.raw().reshape(-1).view("<i8" if d2t.format == "i64" else "<i4").astype(np.int64)
    ids = offsets + np.arange(len(offsets))
    if len(ids) == 0 or ids[0] < 0 or (np.diff(ids) <= 0).any():
        raise CheckpointError(f"{path}: d2t does not map the draft's ids to ascending ids of its target")
    return [int(token) for token in ids]


def _spelled(name: str) -> str:
    name = name.removeprefix("model.")
    return name.replace("midlayer.", "layers.0.", 1) if name.startswith("midlayer.") else name
