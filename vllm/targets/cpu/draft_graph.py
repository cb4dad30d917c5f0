"""What becomes of a finished graph where it drafts: any model's, whatever its file emitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm.targets.cpu.graph import Buffer, Graph, Op, Weight

_LOGITS, _DRAFT_LOGITS = "logits", "draft_logits"


def with_vocabulary(graph: Graph, ids: Sequence[int], num_rows: int) -> Graph:
    """Computes only the logits of `ids`, ascending, which is what a draft step is mostly made of otherwise.

    num_rows: of the output matrix in the checkpoint: as many as ids, or a row for every token. All other logits are
    `ABSENT`, so that sampling sees the whole vocabulary and knows nothing of this.
    """
    if not ids:
        return graph
    if ids[-1] >= graph.vocab_size:
        raise ValueError(f"the draft's vocabulary has token {ids[-1]}, its target only {graph.vocab_size} tokens")
    result = replace(graph, buffers=dict(graph.buffers), weights=dict(graph.weights))
    head = graph.weights["lm_head"]
    rows = () if num_rows == len(ids) else tuple(ids)
    result.weights["lm_head"] = replace(head, shape=(len(ids), head.shape[1]), rows=rows)
    result.weights["draft_ids"] = Weight("draft_ids", "vector", (len(ids),), value=tuple(float(i) for i in ids))
    result.buffers[_DRAFT_LOGITS] = Buffer(_DRAFT_LOGITS, "samples", len(ids))
    expand = Op("expand", (_DRAFT_LOGITS,), _LOGITS, ("draft_ids",))
    result.ops = []
    for op in graph.ops:
        is_head = op.weights[:1] == ("lm_head",)
        result.ops += [replace(op, output=_DRAFT_LOGITS), expand] if is_head else [op]
    return result
