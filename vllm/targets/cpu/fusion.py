"""Which ops of a graph run as one: decided once, used by `plan` (what runs) and `packing` (in which order rows lie).

rms_norm -> linear             the norm is applied as the linear converts its input
rms_norm -> select -> linear   the same, and only for the selected rows
linear -> silu_mul             SwiGLU as gate and up come out; their tiles alternate in the packed weight
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from vllm.targets.cpu.graph import Graph, Op

_PAIR = 64


@dataclass(frozen=True, slots=True)
class FusedOp:
    """An op with what was fused into it. norm: the rms_norm before a linear; silu_mul: whether SwiGLU follows."""

    op: Op
    norm: Op | None = None
    silu_mul: bool = False


def fuse(graph: Graph) -> list[FusedOp]:
    """The ops to run, in order."""
    fused = [FusedOp(op) for op in graph.ops]
    fused = _fuse_silu_mul(graph, fused)
    return _fuse_norms(fused)


def fused_weights(graph: Graph) -> set[str]:
    """Names of the matrices whose gate and up tiles alternate."""
    return {item.op.weights[0] for item in fuse(graph) if item.silu_mul}


def _fuse_silu_mul(graph: Graph, ops: list[FusedOp]) -> list[FusedOp]:
    weight_uses = Counter(name for op in graph.ops for name in op.weights)
    source_uses = Counter(weight.sources for weight in graph.weights.values())
    result: list[FusedOp] = []
    for i, item in enumerate(ops):
        previous = result[-1] if result else None
        if (
            item.op.kind == "silu_mul"
            and previous is not None
            and previous.op.kind == "linear"
            and previous.op.output == item.op.inputs[0]
            and len(previous.op.weights) == 1
            and not previous.op.attrs.get("accumulate")
            and weight_uses[previous.op.weights[0]] == 1
            and graph.weights[previous.op.weights[0]].shape[0] % _PAIR == 0
            and source_uses[graph.weights[previous.op.weights[0]].sources] == 1
            and _dies_after(ops, i)
        ):
            result[-1] = FusedOp(replace(previous.op, output=item.op.output), silu_mul=True)
        else:
            result.append(item)
    return result


def _dies_after(ops: list[FusedOp], index: int) -> bool:
    """Whether nobody reads the first input of ops[index] after it, before it is written again."""
    buffer = ops[index].op.inputs[0]
    for i in range(index + 1, len(ops)):
        item = ops[i]
        if buffer in item.op.inputs or (item.op.output == buffer and item.op.attrs.get("accumulate")):
            return False
        if item.op.output == buffer:
            return True
    return True


def _fuse_norms(ops: list[FusedOp]) -> list[FusedOp]:
    result: list[FusedOp] = []
    for i, item in enumerate(ops):
        before = result[-1] if result else None
        if item.op.kind != "linear" or before is None or not _only_reader(ops, i, before):
            result.append(item)
        elif before.op.kind == "rms_norm":
            result[-1] = replace(item, op=replace(item.op, inputs=before.op.inputs), norm=before.op)
        elif (
            before.op.kind == "select"
            and len(result) > 1
            and _is_norm_of(result[-2], before)
            and _dies_after(ops, i - 1)
        ):
            norm = result[-2].op
            result[-2] = replace(before, op=replace(before.op, inputs=norm.inputs))
            result[-1] = replace(item, norm=norm)
        else:
            result.append(item)
    return result


def _only_reader(ops: list[FusedOp], index: int, writer: FusedOp) -> bool:
    return ops[index].op.inputs[0] == writer.op.output and _dies_after(ops, index)


def _is_norm_of(item: FusedOp, reader: FusedOp) -> bool:
    return item.op.kind == "rms_norm" and item.op.output == reader.op.inputs[0]
