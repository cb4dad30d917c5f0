"""`vllm neuron plan`: what a configuration will compile, hold and cost, and everything that is wrong with it.

Status: 0 the plan holds, 1 it has faults, 2 a wrong command line. Nothing is compiled and no weight is read.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from vllm.checkpoint import Checkpoint, CheckpointError, context_length
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.neuron.output import Table, print_faults, print_table, size
from vllm.plan.instances import INSTANCES, Instance, find_instance
from vllm.plan.model_source import ModelSource, read_source
from vllm.plan.plan import Plan, make_plan, support_of
from vllm.plan.report import plan_to_dict
from vllm.plan.suggest import Suggestion, suggest
from vllm.plan.traffic import DEFAULT_MULTIPLE, LadderChange, TrafficError, ladder_changes, read_traffic
from vllm.settings.faults import Faults
from vllm.settings.target import PLANNED, TARGETS, Version, find_target
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.from_traffic is None and (args.num_buckets is not None or args.bucket_multiple is not None):
        parser.error("--num-buckets and --bucket-multiple shape the ladders of --from-traffic, which is not given")
    try:
        instance = find_instance(args.instance) if args.instance else None
        engine_args = EngineArgs.from_cli_args(args)
        source = _source(engine_args)
        suggestion = _suggestion(args, engine_args, source, instance) if args.suggest else None
        if suggestion is not None and suggestion.chosen is not None:
            engine_args = with_shape(engine_args, suggestion.chosen.degree, suggestion.rows, suggestion.length)
        plan = plan_of(engine_args, source, instance, _read_version(args.nxdi_version))
        changes = _changes(args, plan) if args.from_traffic else []
    except (CheckpointError, TrafficError, ValueError) as error:
        print(f"vllm neuron plan: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(_as_json(plan, suggestion, changes), indent=2))
    else:
        _print(plan, suggestion, changes)
    return 1 if plan.faults else 0


def _parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog="vllm neuron plan", description=__doc__)
    parser.add_argument("--instance", help=f"Instance type to plan for: {', '.join(INSTANCES)}.")
    newest = find_target(PLANNED).versions[-1]
    parser.add_argument("--nxdi-version", default=str(newest), help=f"Version of NxD Inference. Default: {newest}.")
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")
    parser.add_argument(
        "--suggest", action="store_true", help="Propose degree, batch and buckets for --instance (needed with it)."
    )
    parser.add_argument(
        "--from-traffic",
        metavar="FILE",
        help="Propose bucket ladders from lengths: a text or JSON lines file, or the address of a server's /metrics.",
    )
    parser.add_argument("--num-buckets", type=int, help="Buckets of a proposed ladder. Default: as many as now.")
    parser.add_argument("--bucket-multiple", type=int, help="Proposed buckets are multiples of this. Default: 128.")
    EngineArgs.add_cli_args(parser)
    return parser


def _source(args: EngineArgs) -> ModelSource:
    return read_source(args.model, args.revision, args.download_dir, args.hf_token, args.load_format)


def _read_version(text: str) -> Version:
    return find_target(PLANNED).read_version(text)


def target_of(args: EngineArgs) -> str:
    """The target that is planned for: the accelerator's unless another one is asked for by name."""
    return args.device if args.device in TARGETS else PLANNED


def plan_of(args: EngineArgs, source: ModelSource, instance: Instance | None, version: Version | None = None) -> Plan:
    """The plan of engine arguments, with what is wrong with single options among its faults."""
    faults = Faults()
    config = args.examined_config(faults, source.as_checkpoint(), _open_draft)
    source = replace(source, config=config.model_config.hf_config)
    return make_plan(config, source, target_of(args), instance, version, faults)


def _open_draft(model: str, **options: Any) -> Checkpoint:
    """Its config.json and headers alone, as of the model itself."""
    return read_source(model, **options).as_checkpoint()


def _suggestion(args: Any, engine_args: EngineArgs, source: ModelSource, instance: Instance | None) -> Suggestion:
    if instance is None:
        raise ValueError(f"--suggest needs --instance; known: {', '.join(INSTANCES)}")
    return suggest(
        lambda degree, rows, length: plan_of(
            with_shape(engine_args, degree, rows, length),
            source,
            instance,
            _read_version(args.nxdi_version),
        ),
        instance,
        degree=None if engine_args.tensor_parallel_size == 1 else engine_args.tensor_parallel_size,
        rows=engine_args.max_num_seqs,
        length=engine_args.max_model_len,
        longest=context_length(source.config),
    )


def with_shape(args: EngineArgs, degree: int, rows: int, length: int) -> EngineArgs:
    shape: dict[str, Any] = {"tensor_parallel_size": degree, "max_num_seqs": rows, "max_model_len": length}
    return replace(args, **shape)


def _changes(args: Any, plan: Plan) -> list[LadderChange]:
    if plan.faults:
        return []
    return ladder_changes(
        read_traffic(args.from_traffic),
        plan.neuron_config,
        args.num_buckets,
        DEFAULT_MULTIPLE if args.bucket_multiple is None else args.bucket_multiple,
    )


def _as_json(plan: Plan, suggestion: Suggestion | None, changes: list[LadderChange]) -> dict[str, Any]:
    found = plan_to_dict(plan)
    if suggestion is not None:
        found["suggestion"] = suggestion.to_dict()
    if changes:
        found["traffic"] = [change.to_dict() for change in changes]
    return found


# Tables.


def _print(plan: Plan, suggestion: Suggestion | None, changes: list[LadderChange]) -> None:
    found = plan_to_dict(plan)
    print_table(_overview(plan, found))
    if plan.memory is not None:
        print_table(_memory(plan, found))
    if plan.programs:
        print_table(_programs(found))
        print_table(_artifact(found))
    if plan.instance is None and found["instances"]:
        print_table(
            Table("Instances", ("instance", "fits"), [(n, why or "yes") for n, why in found["instances"].items()])
        )
    for notice in plan.notices:
        print(f"note: {notice}")
    if plan.notices:
        print()
    if plan.faults:
        print_faults(plan.faults)
    if suggestion is not None:
        print_suggestion(suggestion)
    for change in changes:
        print_table(_ladder(change))
    if changes:
        print(f"--override-neuron-config '{json.dumps({change.key: change.after for change in changes})}'")


def _overview(plan: Plan, found: dict[str, Any]) -> Table:
    model, parallel, limits = found["model"], found["parallel"], found["limits"]
    rows = [
        ("architecture", model["architecture"]),
        *((support.question, support.answer) for support in support_of(plan).values()),
        ("planned for NxD Inference", found["nxdi_version"]),
        ("parameters", f"{model['parameters']:,} (from {model['sizes_from']})"),
        ("checkpoint", size(model["checkpoint_bytes"])),
        ("target", found["target"]),
    ]
    if instance := found["instance"]:
        cores = f"{instance['logical_cores']} logical cores of {size(instance['hbm_bytes_per_core'])}"
        rows.append(("instance", f"{instance['name']}: {cores}, host {size(instance['host_bytes'])}"))
    if kv := found["kv_cache"]:
        capacity = (
            f"{kv['sequences']} sequences, {kv['tokens']:,} tokens, {kv['bytes_per_token_per_core']:,} bytes each"
        )
        rows.append(("KV cache holds", f"{capacity} on a core"))
    rows.append(("tensor_parallel_size", parallel["tensor_parallel_size"]))
    rows.append(("valid degrees", ", ".join(map(str, parallel["valid_degrees"]))))
    if "query_heads" in parallel:
        rows.append(("query heads", _heads(parallel, "query_heads", "padded_query_heads", "query_heads_per_core")))
        kv = _heads(parallel, "kv_heads", "sharded_kv_heads", "kv_heads_per_core")
        rows.append(("KV heads", f"{kv} ({parallel['strategy']})"))
    if limits["max_num_seqs"] is not None:
        rows.append(("largest max_num_seqs", f"{limits['max_num_seqs']} (with all else as it is)"))
        rows.append(("largest max_model_len", f"{limits['max_model_len']} (with all else as it is)"))
    return Table("Plan", ("", ""), rows)


def _heads(parallel: dict[str, Any], own: str, sharded: str, per_core: str) -> str:
    grown = f" -> {parallel[sharded]}" if parallel[sharded] != parallel[own] else ""
    return f"{parallel[own]}{grown}, {parallel[per_core]} a core"


def _memory(plan: Plan, found: dict[str, Any]) -> Table:
    memory, host = found["memory_per_core"], found["host"]
    what = "core" if plan.target.profile.own_memory else "process"
    rows = [(f"weights: {kind}", size(count), f"{count:,}") for kind, count in memory["weights"].items()]
    rows.append(("weights", size(memory["weights_total"]), f"{memory['weights_total']:,}"))
    rows.append(("KV cache", size(memory["kv_cache"]), f"{memory['kv_cache']:,}"))
    rows.append(("scratch (estimate)", size(memory["scratch_estimate"]), f"{memory['scratch_estimate']:,}"))
    rows.append(("total", size(memory["total"]), f"{memory['total']:,}"))
    if memory["budget"] is not None:
        rows.append(("budget", size(memory["budget"]), f"{memory['budget']:,}"))
    for name in ("compile", "load"):
        estimate = host[f"{name}_estimate"]
        rows.append((f"host to {name} (estimate)", size(estimate), f"{estimate:,}"))
    return Table(f"Memory of one {what}", ("", "size", "bytes"), rows)


def _programs(found: dict[str, Any]) -> Table:
    rows = [(each["kind"], each["batch"], each["tokens"], each["context"] or "") for each in found["programs"]]
    return Table("Programs", ("kind", "rows", "tokens", "context"), rows)


def _artifact(found: dict[str, Any]) -> Table:
    artifact = found["artifact"]
    work = f"{artifact['programs']} programs x {artifact['layers']} layers"
    rows = [(each["path"], size(each["bytes"])) for each in artifact["files"]]
    return Table(f"Artifact; compile work: {work}", ("file", "size"), rows)


def print_suggestion(suggestion: Suggestion) -> None:
    rows = [
        (each.degree, each.replicas, size(each.weight_bytes), f"{each.kv_copies:g}", each.rows, each.why_not)
        for each in suggestion.options
    ]
    columns = ("degree", "replicas", "weights a core", "KV copies", "sequences that fit", "why not")
    print_table(Table(f"Degrees on {suggestion.instance}", columns, rows))
    if suggestion.chosen is None:
        print(f"suggestion: none. {suggestion.reason}\n")
        return
    print(f"suggestion: {suggestion.reason}")
    print(f"  {suggestion.flags()}")
    for key, ladder in suggestion.buckets.items():
        print(f"  {key}, as they follow from that: {ladder}")
    print()


def _ladder(change: LadderChange) -> Table:
    rows = [
        ("now", str(change.before), f"{change.padding_before:.1%}"),
        ("proposed", str(change.after), f"{change.padding_after:.1%}"),
    ]
    too_long = f", without {change.left_out:,} that are longer than any bucket" if change.left_out else ""
    return Table(f"{change.key}, for {change.count:,} {change.what}{too_long}", ("ladder", "buckets", "padding"), rows)
