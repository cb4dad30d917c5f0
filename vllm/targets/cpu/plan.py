"""`plan`: a graph at one bucket's shapes, as the list of ops that the native core runs.

A `ProgramSpec` is plain JSON:
    program  {"max_tokens", "max_samples", "arena_bytes", "ops"}
    op       {"kind", "inputs", "output", "weights" (role -> name), "attrs"}
    buffer   {"offset" (bytes into the arena), "width", "rows" ("tokens" or "samples")}

Buffers that are not alive at once share memory. Ops on samples come last and are run again for every `max_samples`
selected positions, so what they read of the tokens stays alive to the end.
"""

from __future__ import annotations

from typing import Any

from vllm.targets.cpu.fusion import FusedOp, fuse
from vllm.targets.cpu.graph import Buffer, Graph, Op

ProgramSpec = dict[str, Any]
_ALIGNMENT = 64
_ROLES = {
    "embed": ("weight",),
    "rms_norm": ("weight",),
    "linear": ("weight", "bias"),
    "rope_kv": ("inv_freq", "q_norm", "k_norm"),
    "rotary_angles": ("inv_freq",),
    "expand": ("ids",),
}


def plan(graph: Graph, max_tokens: int, max_samples: int, default_top_k: int = 0) -> ProgramSpec:
    """The program for at most `max_tokens` tokens a step, whose logits are worked on `max_samples` positions at a time.

    default_top_k: how many most likely tokens are sampled from where top_k is disabled; 0: all.
    """
    if max_tokens < 1 or max_samples < 1:
        raise ValueError(f"a program needs room for tokens and samples, got {max_tokens} and {max_samples}")
    buffers = dict(graph.buffers)
    ops = _with_angles(fuse(graph), buffers)
    offsets, arena_bytes = _place(ops, buffers, max_tokens, max_samples)

    def describe(name: str) -> dict[str, Any]:
        return {"offset": offsets[name], "width": buffers[name].width, "rows": buffers[name].rows}

    return {
        "max_tokens": max_tokens,
        "max_samples": max_samples,
        "arena_bytes": arena_bytes,
        "ops": [
            {
                "kind": item.op.kind,
                "inputs": [describe(name) for name in item.op.inputs],
                "output": describe(item.op.output if item.op.kind != "sample" else item.op.inputs[0]),
                "weights": _weights(item),
                "attrs": _attrs(item, default_top_k),
            }
            for item in ops
        ],
    }


def _with_angles(ops: list[FusedOp], buffers: dict[str, Buffer]) -> list[FusedOp]:
    """Put the rotary angles, which are the same for all layers, into buffers of their own."""
    angles: dict[tuple[Any, ...], str] = {}
    first: list[FusedOp] = []
    rest: list[FusedOp] = []
    for item in ops:
        op = item.op
        if op.kind == "rope_kv":
            key = (op.weights[0], op.attrs["rotary_dim"], op.attrs["attention_factor"])
            if key not in angles:
                name = f"rotary_angles.{len(angles)}"
                angles[key] = name
                buffers[name] = Buffer(name, "tokens", int(op.attrs["rotary_dim"]))
                attrs = {"attention_factor": op.attrs["attention_factor"]}
                first.append(FusedOp(Op("rotary_angles", (), name, (op.weights[0],), attrs)))
            op = Op(op.kind, (op.inputs[0], angles[key]), op.output, op.weights, op.attrs)
            item = FusedOp(op)
        rest.append(item)
    return first + rest


def _place(
    ops: list[FusedOp], buffers: dict[str, Buffer], max_tokens: int, max_samples: int
) -> tuple[dict[str, int], int]:
    """Offsets of all buffers, and the arena's size: first fit among those alive at the same time."""
    lives = _lives(ops, buffers)
    offsets: dict[str, int] = {}
    arena_bytes = 0
    for name, (born, dies) in sorted(lives.items(), key=lambda entry: entry[1][0]):
        size = _num_bytes(buffers[name], max_tokens, max_samples)
        taken = sorted(
            (offsets[other], offsets[other] + _num_bytes(buffers[other], max_tokens, max_samples))
            for other in offsets
            if lives[other][0] <= dies and born <= lives[other][1]
        )
        offset = 0
        for start, stop in taken:
            if offset + size <= start:
                break
            offset = max(offset, stop)
        offsets[name] = offset
        arena_bytes = max(arena_bytes, offset + size)
    return offsets, arena_bytes


def _num_bytes(buffer: Buffer, max_tokens: int, max_samples: int) -> int:
    rows = max_tokens if buffer.rows == "tokens" else max_samples
    return -(-rows * buffer.width * 4 // _ALIGNMENT) * _ALIGNMENT


def _lives(ops: list[FusedOp], buffers: dict[str, Buffer]) -> dict[str, tuple[int, int]]:
    """First and last op that touches each buffer."""
    lives: dict[str, tuple[int, int]] = {}
    for i, item in enumerate(ops):
        on_samples = item.op.kind == "sample" or buffers[item.op.output].rows == "samples"
        touched = item.op.inputs if item.op.kind == "sample" else (*item.op.inputs, item.op.output)
        for name in touched:
            stays = on_samples and buffers[name].rows == "tokens"
            lives[name] = (lives.get(name, (i, i))[0], len(ops) if stays else i)
    return lives


def _weights(item: FusedOp) -> dict[str, str]:
    op = item.op
    weights = dict(zip(_ROLES.get(op.kind, ()), op.weights, strict=False))
    if op.kind == "rope_kv":
        del weights["inv_freq"]
    if item.norm is not None:
        weights["norm"] = item.norm.weights[0]
    return weights


def _attrs(item: FusedOp, default_top_k: int) -> dict[str, float | int]:
    attrs: dict[str, float | int] = {
        name: value if isinstance(value, float) else int(value) for name, value in item.op.attrs.items()
    }
    if item.norm is not None:
        attrs["eps"] = float(item.norm.attrs["eps"])
    if item.silu_mul:
        attrs["silu_mul"] = 1
    if item.op.kind == "sample":
        attrs["default_top_k"] = default_top_k
    if item.op.kind == "embed":
        attrs.setdefault("scale", 1.0)
    if item.op.kind == "attention":
        attrs.setdefault("window", 0)
    return attrs
