"""The two graphs of a speculating model, and where their weights come from, by method.

draft_model    any model of the target's vocabulary; the target's graph stays as it is
eagle, eagle3  `models/eagle.py`; the target keeps states for its draft in a hidden cache that the two share
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from vllm.checkpoint.draft import DraftCheckpoint, read_draft_ids
from vllm.config import SpeculativeConfig
from vllm.neuron.cpu.draft_graph import with_vocabulary
from vllm.neuron.cpu.graph import Graph
from vllm.neuron.cpu.models import build_graph
from vllm.neuron.cpu.models.eagle import build_eagle, build_eagle3, with_kept_states
from vllm.neuron.cpu.packing import Checkpoint as Tensors

EAGLE = ("eagle", "eagle3")


@dataclass(frozen=True, slots=True)
class Pair:
    """Target and draft. weights: of each, which may be in either checkpoint."""

    target: Graph
    target_weights: Tensors
    draft: Graph
    draft_weights: Tensors


def build_pair(target: Graph, checkpoint: Checkpoint, speculation: SpeculativeConfig, max_len: int) -> Pair:
    """target: the graph of the target as it would be alone; checkpoint: its own.

    Raises ValueError or CheckpointError for a draft that does not fit its target.
    """
    own = open_checkpoint(speculation.model_path or speculation.model, load_format=speculation.load_format)
    if speculation.method not in EAGLE:
        return Pair(target, checkpoint, _draft_model(own, max_len), own)
    width, needed = own.config.get("hidden_size"), checkpoint.config["hidden_size"]
    if width != needed:
        raise CheckpointError(
            f"{own.path} has hidden size {width}, its target {needed}: an EAGLE draft fits no target but its own"
        )
    both = DraftCheckpoint(own, checkpoint)
    build = build_eagle3 if speculation.method == "eagle3" else build_eagle
    draft = build(own.config, max_len, both)
    draft = with_vocabulary(draft, both.draft_ids(), both.get(both.output_matrix).shape[0])
    return Pair(with_kept_states(target, speculation.method, both), both, draft, both)


def _draft_model(own: Checkpoint, max_len: int) -> Graph:
    """A model as it is, or, with a `d2t` beside its weights, with fewer tokens to choose from."""
    graph = build_graph(own.config, max_len)
    if "d2t" not in own:
        return graph
    head = graph.weights["lm_head"].sources[0]
    return with_vocabulary(graph, read_draft_ids(own.get("d2t"), own.path), own.get(head).shape[0])
