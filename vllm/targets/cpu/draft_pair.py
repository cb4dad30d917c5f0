"""The two graphs of a model that speculates with a draft, and where their weights come from, by method.

draft_model    any model of the target's vocabulary; the target's graph stays as it is
eagle, eagle3  `models/eagle.py`; the target keeps states for its draft in a hidden cache that the two share
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from vllm.checkpoint.draft import DRAFT, DraftCheckpoint, read_draft_ids
from vllm.checkpoint.tied import with_output_matrix
from vllm.config import SpeculativeConfig
from vllm.targets.cpu.coverage import Source, faults_of
from vllm.targets.cpu.draft_graph import with_vocabulary
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.models.eagle import build_eagle, build_eagle3, with_kept_states

_EAGLE = {"eagle": build_eagle, "eagle3": build_eagle3}
_INPUT_NORM = f"{DRAFT}layers.0.input_layernorm.weight"


@dataclass(frozen=True, slots=True)
class Pair:
    """Target and draft, and a checkpoint for each that has all of its weights."""

    target: Graph
    target_weights: Source
    draft: Graph
    draft_weights: Source


def keeps_drafts(method: str) -> bool:
    """Whether the KV of an accepted draft is what reading that token would give. EAGLE's is made from guesses."""
    return method not in _EAGLE


def build_pair(
    target: Graph, checkpoint: Checkpoint, speculation: SpeculativeConfig, max_len: int, needs_input_norm: bool = False
) -> Pair:
    """target: the graph of the target as it would be alone; checkpoint: its own.

    needs_input_norm: NxD Inference's `enable_eagle_draft_input_norm`; a norm that is there is applied in any case.
    Raises ValueError or CheckpointError for a draft that does not fit its target.
    """
    own = open_checkpoint(speculation.model_path or speculation.model, load_format=speculation.load_format)
    if speculation.method not in _EAGLE:
        return Pair(target, checkpoint, _draft_model(own, max_len), own)
    width, needed = own.config.get("hidden_size"), checkpoint.config["hidden_size"]
    if width != needed:
        raise CheckpointError(
            f"{own.path} has hidden size {width}, its target {needed}: an EAGLE draft fits no target but its own"
        )
    both = DraftCheckpoint(own, checkpoint)
    if needs_input_norm and _INPUT_NORM not in both:
        raise CheckpointError(
            f"{own.path} has no input norm in its first layer; leave enable_eagle_draft_input_norm out"
        )
    draft = _EAGLE[speculation.method](own.config, max_len, both)
    draft = with_vocabulary(draft, both.draft_ids(), both.get(both.output_matrix).shape[0])
    return Pair(with_kept_states(target, speculation.method, both), both, draft, both)


def _draft_model(own: Checkpoint, max_len: int) -> Graph:
    """A model as it is, or, with a `d2t` beside its weights, with fewer tokens to choose from."""
    with faults_of(own.path):
        graph = build_graph(with_output_matrix(own.config, own), max_len)
    if "d2t" not in own:
        return graph
    head = graph.weights["lm_head"].sources[0]
    return with_vocabulary(graph, read_draft_ids(own.get("d2t"), own.path), own.get(head).shape[0])
