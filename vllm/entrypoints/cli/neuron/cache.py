"""`vllm neuron cache ls|verify|prune`: stores of compiled artifacts.

Stores: those given by --store (may be repeated), else NEURON_COMPILED_ARTIFACTS, else those of --model (beside the
checkpoint, and in the cache directory), else the one in the cache directory. Nothing is removed without a rule, and
nothing that this package did not make. Status: 0 done, 1 damage was found or something could not be removed, 2 a wrong
command line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.artifacts.find import STORE_NAME
from vllm.artifacts.fingerprint import cache_root
from vllm.artifacts.keeper import Kept, Rule, chosen, fault_of, kept_in, remove
from vllm.entrypoints.cli.neuron.output import Table, is_terminal, print_table, size

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    stores = stores_of(args.store, args.model)
    kept = [each for store in stores for each in kept_in(store)]
    if args.command == "ls":
        return _list(stores, kept, args.json)
    if args.command == "verify":
        return _verify(kept, args.deep, args.json)
    return _prune(kept, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm neuron cache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("ls", help="Artifacts, their sizes and when they were used last.")
    checking = commands.add_parser("verify", help="Hold the files of every artifact against its manifest.")
    checking.add_argument("--deep", action="store_true", help="Read every byte; without it large files are sampled.")
    pruning = commands.add_parser("prune", help="Remove artifacts by a rule. Several rules: all must hold.")
    pruning.add_argument("--older-than", type=_age, metavar="AGE", help="Neither made nor loaded for 30d, 12h, 2w, ...")
    pruning.add_argument("--unused", action="store_true", help="Never loaded.")
    pruning.add_argument("--keep", type=_count, metavar="N", help="All but the N last made or loaded.")
    pruning.add_argument("--hash", action="append", default=[], type=_hash, help="Whose name begins so; repeatable.")
    pruning.add_argument("--damaged", action="store_true", help="Set aside as damaged.")
    pruning.add_argument("--dry-run", action="store_true", help="Say what would go.")
    pruning.add_argument("--yes", action="store_true", help="Do not ask.")
    for command in (listing, checking, pruning):
        command.add_argument("--store", action="append", default=[], help="Directory of artifacts; repeatable.")
        command.add_argument("--model", help="Checkpoint whose stores are meant.")
        command.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; use for example 30d, 12h or 2w")
    return float(int(match[1]) * _UNITS[match[2]])


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no count; use 0 or more")
    return int(text)


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{6,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no hash; give 6 or more of its hexadecimal digits")
    return text


def stores_of(given: list[str], model: str | None) -> list[Path]:
    """The directories that are meant: see the module."""
    if given:
        return [Path(store).expanduser() for store in given]
    if envs.NEURON_COMPILED_ARTIFACTS:
        return [Path(envs.NEURON_COMPILED_ARTIFACTS).expanduser()]
    fallback = cache_root() / STORE_NAME
    if model is None:
        return [fallback]
    path = Path(model).expanduser()
    return [(path.parent if path.is_file() else path) / STORE_NAME, fallback]


def _list(stores: list[Path], kept: list[Kept], as_json: bool) -> int:
    if as_json:
        print(
            json.dumps({"stores": [str(store) for store in stores], "artifacts": [_entry(k) for k in kept]}, indent=2)
        )
        return 0
    rows = [_row(each) for each in kept]
    columns = ("hash", "target", "rows", "length", "tp", "size", "made", "last use", "")
    for store in stores:
        print(f"store: {store}{'' if store.is_dir() else ' (not there)'}")
    print_table(Table(f"{len(kept)} artifacts, {size(sum(each.bytes for each in kept))}", columns, rows))
    return 0


def _row(kept: Kept) -> list[str]:
    neuron = kept.manifest.key.get("neuron_config") or {}
    shape = [str(neuron.get(name, "")) for name in ("batch_size", "seq_len", "tp_degree")]
    used = _day(kept.used) if kept.used else "never"
    aside = "damaged" if kept.set_aside else ""
    return [
        kept.hash[:12],
        str(kept.manifest.key.get("target", "")),
        *shape,
        size(kept.bytes),
        _day(kept.made),
        used,
        aside,
    ]


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M}Z"


def _entry(kept: Kept) -> dict[str, Any]:
    neuron = kept.manifest.key.get("neuron_config") or {}
    return {
        "hash": kept.hash,
        "path": str(kept.path),
        "target": kept.manifest.key.get("target"),
        "batch_size": neuron.get("batch_size"),
        "seq_len": neuron.get("seq_len"),
        "tp_degree": neuron.get("tp_degree"),
        "bytes": kept.bytes,
        "created": kept.manifest.created,
        "last_use": kept.used,
        "tool": kept.manifest.tool,
        "set_aside": kept.set_aside,
    }


def _verify(kept: list[Kept], deep: bool, as_json: bool) -> int:
    faults = {str(each.path): fault_of(each, deep) for each in kept if not each.set_aside}
    damaged = {path: fault for path, fault in faults.items() if fault}
    if as_json:
        print(json.dumps({"checked": len(faults), "damaged": damaged}, indent=2))
    else:
        for fault in damaged.values():
            print(fault)
        how = "every byte read" if deep else "large files sampled"
        print(f"{len(faults) - len(damaged)} of {len(faults)} artifacts are whole ({how})")
    return 1 if damaged else 0


def _prune(kept: list[Kept], args: argparse.Namespace) -> int:
    rule = Rule(args.older_than, args.unused, args.keep, tuple(args.hash), args.damaged)
    if rule.is_empty:
        print(
            "vllm neuron cache prune: give a rule: --older-than AGE, --unused, --keep N, --hash HASH or --damaged",
            file=sys.stderr,
        )
        return 2
    going = chosen(kept, rule, time.time())
    removed: list[Kept] = []
    left: dict[str, str] = {}
    if going and not args.dry_run and (args.yes or _agreed(going, args.json)):
        for each in going:
            if reason := remove(each):
                left[str(each.path)] = reason
            else:
                removed.append(each)
    _report(going, removed, left, args)
    unanswered = bool(going) and not args.dry_run and not removed and not left
    return 1 if left or unanswered else 0


def _agreed(going: list[Kept], quiet: bool) -> bool:
    if quiet or not (sys.stdin.isatty() and is_terminal()):
        print("vllm neuron cache prune: nobody to ask; give --yes to remove, or --dry-run to look", file=sys.stderr)
        return False
    print_table(
        Table(
            "To be removed",
            ("hash", "target", "rows", "length", "tp", "size", "made", "last use", ""),
            [_row(each) for each in going],
        )
    )
    return input(f"Remove {len(going)} artifacts? [y/N] ").strip().lower() in ("y", "yes")


def _report(going: list[Kept], removed: list[Kept], left: dict[str, str], args: argparse.Namespace) -> None:
    if args.json:
        found = {
            "matched": [_entry(each) for each in going],
            "removed": [str(each.path) for each in removed],
            "left": left,
            "freed_bytes": sum(each.bytes for each in removed),
        }
        print(json.dumps(found, indent=2))
        return
    if args.dry_run:
        for each in going:
            print(f"would remove {each.path} ({size(each.bytes)})")
    for each in removed:
        print(f"removed {each.path}")
    for path, reason in left.items():
        print(f"left {path}: {reason}")
    print(f"{len(going)} matched, {len(removed)} removed, {size(sum(each.bytes for each in removed))} freed")
