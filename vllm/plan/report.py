"""A plan as JSON types: what `vllm neuron plan --json` prints, and what its tables are made of."""

from __future__ import annotations

from typing import Any

from vllm.plan.instances import INSTANCES
from vllm.plan.plan import Plan, support_of
from vllm.settings.parallel import valid_degrees
from vllm.settings.programs import VISION_ENCODER
from vllm.settings.target import PlannedFile

FORM = 1


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The form is described in docs/neuron_cli.md. Sizes in bytes; "per_core" means one logical core."""
    return {
        "form": FORM,
        "ok": not plan.faults,
        "faults": [
            {"name": fault.name, "given": fault.given, "why": fault.why, "fix": fault.fix} for fault in plan.faults
        ],
        "notices": plan.notices,
        "model": _model(plan),
        "target": plan.target.profile.name,
        "nxdi_version": str(plan.version),
        "instance": plan.instance.to_dict(plan.lnc) if plan.instance else None,
        "parallel": _parallel(plan),
        "programs": [program.to_dict() for program in plan.programs],
        "memory_per_core": _memory(plan),
        "kv_cache": _kv(plan),
        "host": _host(plan),
        "limits": _limits(plan),
        "artifact": _artifact(plan),
        "instances": {name: plan.fits_on(instance) for name, instance in INSTANCES.items()}
        if plan.target.profile.own_memory
        else {},
    }


def _model(plan: Plan) -> dict[str, Any]:
    return {
        "path": str(plan.source.path),
        "architecture": str((plan.source.config.get("architectures") or ["unknown"])[0]),
        "sizes_from": plan.source.origin,
        "parameters": plan.parameters,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "support": {name: support.value for name, support in support_of(plan).items()},
    }


def _parallel(plan: Plan) -> dict[str, Any]:
    heads, lnc = plan.heads, plan.lnc
    degrees = plan.instance.degrees(lnc) if plan.instance else list(valid_degrees())
    found: dict[str, Any] = {"tensor_parallel_size": plan.neuron_config.tp_degree, "valid_degrees": degrees}
    if heads:
        found |= {
            "query_heads": heads.num_heads,
            "padded_query_heads": heads.padded_heads,
            "query_heads_per_core": heads.heads_per_rank,
            "kv_heads": heads.num_kv_heads,
            "sharded_kv_heads": heads.sharded_kv_heads,
            "kv_heads_per_core": heads.kv_heads_per_rank,
            "strategy": heads.strategy,
        }
    return found


def _memory(plan: Plan) -> dict[str, Any] | None:
    memory = plan.memory
    if memory is None:
        return None
    return {
        "weights": memory.weights,
        "weights_total": memory.weight_bytes,
        "kv_cache": memory.kv_bytes(),
        "scratch_estimate": memory.activations(),
        "total": memory.total(),
        "budget": plan.budget,
        "free": None if plan.budget is None else plan.budget - memory.total(),
    }


def _kv(plan: Plan) -> dict[str, Any] | None:
    memory, config = plan.memory, plan.neuron_config
    if memory is None:
        return None
    shape = memory.kv()
    return {
        "layout": "blocks" if config.is_block_kv_layout else "contiguous",
        "lines": shape.lines,
        "tokens_per_line": shape.length,
        "sequences": config.batch_size,
        "tokens": config.batch_size * config.seq_len,
        "bytes_per_token_per_core": shape.bytes_per_token,
    }


def _host(plan: Plan) -> dict[str, Any]:
    return {
        "compile_estimate": plan.host_bytes,
        "load_estimate": plan.host_bytes_to_load,
        "capacity": plan.instance.host_bytes if plan.instance else None,
    }


def _limits(plan: Plan) -> dict[str, Any]:
    """The largest values that fit with all else as configured."""
    budget, memory = plan.budget, plan.memory
    if budget is None or memory is None or not plan.target.profile.own_memory:
        return {"max_num_seqs": None, "max_model_len": None}
    bound = int(plan.source.config.get("max_position_embeddings") or plan.neuron_config.seq_len)
    return {"max_num_seqs": memory.most_rows(budget), "max_model_len": memory.longest(budget, bound)}


def _artifact(plan: Plan) -> dict[str, Any]:
    layers = int(plan.source.config.get("num_hidden_layers") or 0)
    shard = plan.memory.weight_bytes if plan.memory else 0
    count, of_vision = len(plan.programs), sum(program.kind == VISION_ENCODER for program in plan.programs)
    return {
        "programs": count,
        "layers": layers,
        "layer_programs": (count - of_vision) * layers,
        "files": _files(plan, shard) if count else [],
    }


def _files(plan: Plan, shard_bytes: int) -> list[dict[str, Any]]:
    of_vision = plan.memory.weights.get("vision", 0) if plan.memory else 0
    has_vision = any(program.kind == VISION_ENCODER for program in plan.programs)
    parts = {"text_model/": shard_bytes - of_vision, "vision_model/": of_vision} if has_vision else {"": shard_bytes}
    files = plan.target.files(plan.neuron_config, parts, len(plan.programs), plan.is_portable)
    return [file._asdict() for file in (PlannedFile("manifest.json"), *files)]
