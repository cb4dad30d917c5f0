"""`vllm neuron inspect DIR [engine flags]`: what is in an artifact, and with --model whether it would load.

Status: 0 it is whole, and would load for the flags if any were given; 1 it is damaged, or flags or checkpoint are at
fault; 2 a wrong command line; 4 it is whole, but the flags need another one: the difference is printed key by key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.artifacts.find import ArtifactError, artifact_key, common_key, diff_keys
from vllm.artifacts.keeper import kept_in
from vllm.artifacts.manifest import MANIFEST, DamagedArtifact, Manifest, verify
from vllm.artifacts.store import REMEDY, last_use, trust_fault
from vllm.checkpoint import CheckpointError
from vllm.device.model import resolve_target
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.neuron.compile import resolved_config
from vllm.entrypoints.cli.neuron.output import Table, print_table, size
from vllm.settings.neuron_config import NeuronConfig, NeuronConfigError
from vllm.settings.programs import programs_of
from vllm.settings.target import TARGETS
from vllm.utils.argparse_utils import FlexibleArgumentParser

DONE, FAULTS, USAGE, OTHER = 0, 1, 2, 4
_FOREIGN_CONFIG, _FOREIGN_MODEL = "neuron_config.json", "model.pt"


@dataclass(slots=True)
class Verdict:
    """Whether flags would load an artifact. loads: None where no flags were given."""

    loads: bool | None = None
    diff: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    engine_args = EngineArgs.from_cli_args(args)
    default = EngineArgs()
    if engine_args != default and engine_args.model == default.model:
        parser.error("engine flags need --model: without it nothing says what weights they are for")
    directory = Path(args.directory).expanduser()
    try:
        manifest = verify(directory, deep=args.deep)
        damage = ""
    except DamagedArtifact as error:
        if not (directory / MANIFEST).is_file():
            print(f"vllm neuron inspect: {_no_artifact(directory)}", file=sys.stderr)
            return FAULTS
        damage = str(error)
        try:
            manifest = Manifest.read(directory)
        except DamagedArtifact:
            print(f"vllm neuron inspect: {damage}", file=sys.stderr)
            return FAULTS
    try:
        verdict = _verdict(engine_args, manifest) if engine_args != default else Verdict()
        if fault := trust_fault(directory):
            verdict.notes.append(f"this user's starts pass it over: {fault}. {REMEDY}")
    except (CheckpointError, ArtifactError, ValueError, OSError) as error:
        print(f"vllm neuron inspect: {error}", file=sys.stderr)
        return FAULTS
    if args.json:
        print(json.dumps(_as_json(directory, manifest, damage, verdict), indent=2))
    else:
        _print(directory, manifest, damage, verdict)
    if damage:
        return FAULTS
    return OTHER if verdict.loads is False else DONE


def _parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog="vllm neuron inspect", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="The artifact: a directory with a manifest.json.")
    parser.add_argument("--deep", action="store_true", help="Read every byte; without it large files are sampled.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    EngineArgs.add_cli_args(parser)
    return parser


def _no_artifact(directory: Path) -> str:
    """What a directory without a manifest is instead."""
    if not directory.is_dir():
        return f"{directory} is not a directory"
    if (directory / _FOREIGN_MODEL).is_file() or (directory / _FOREIGN_CONFIG).is_file():
        return (
            f"{directory} was compiled by NxD Inference without a {MANIFEST}: nothing says what checkpoint and "
            "settings it fits, so it is never loaded. Compile it again with `vllm neuron compile`"
        )
    if found := kept_in(directory):
        names = ", ".join(each.path.name[:12] for each in found[:5])
        return f"{directory} is a store of {len(found)} artifacts; name one of them: {names}, ..."
    return f"{directory} holds no {MANIFEST}, and no artifacts"


def _verdict(args: EngineArgs, manifest: Manifest) -> Verdict:
    """Hold the key that the flags need against the artifact's, for its target unless --device says another."""
    target = str(manifest.key.get("target", ""))
    if args.device in (None, "auto", target) and target in TARGETS:
        config = resolved_config(args, target)
    else:
        config = resolved_config(args)
    notes = []
    try:
        needed = artifact_key(config, resolve_target(config.target))
    except ImportError as error:
        missing = str(error.name or error)
        notes.append(f"compiler and layout are not compared: {missing} is not installed here")
        needed = {**common_key(config), "compiler": manifest.key.get("compiler")}
    diff = diff_keys(manifest.key, needed)
    return Verdict(not diff, diff, notes)


def _as_json(directory: Path, manifest: Manifest, damage: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "path": str(directory),
        "hash": manifest.hash,
        "whole": not damage,
        "damage": damage,
        "created": manifest.created,
        "tool": manifest.tool,
        "compile_seconds": manifest.compile_seconds,
        "last_use": last_use(directory),
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "key": manifest.key,
        "programs": [program.to_dict() for program in _programs(manifest.key)],
        "would_load": verdict.loads,
        "diff": verdict.diff,
        "notes": verdict.notes,
    }


def _programs(key: Mapping[str, Any]) -> list[Any]:
    """The programs of the artifact's Neuron config; none where a key of another version cannot be read."""
    try:
        return programs_of(NeuronConfig.from_dict(_section(key, "neuron_config")), _section(key, "model"))
    except (NeuronConfigError, TypeError, ValueError):
        return []


def _section(key: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a key, which may be of another version or damaged: then it is empty."""
    found = key.get(name)
    return found if isinstance(found, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _print(directory: Path, manifest: Manifest, damage: str, verdict: Verdict) -> None:
    key = manifest.key
    model, neuron, buckets = _section(key, "model"), _section(key, "neuron_config"), _section(key, "buckets")
    weights = [f"{name}: {str(digest)[:12]}" for name, digest in _section(key, "weights").items()]
    rows = [
        ("hash", manifest.hash),
        ("made", f"{manifest.created} by {manifest.tool}, in {manifest.compile_seconds:.1f} s"),
        ("target", key.get("target", "")),
        ("architecture", ", ".join(map(str, _listed(model.get("architectures")) or ["unknown"]))),
        ("weights", ", ".join(weights)),
        ("dtype", f"{key.get('dtype')}, KV cache {_section(key, 'kv_cache').get('dtype')}"),
        ("rows, length", f"{neuron.get('batch_size')} of {neuron.get('seq_len')} tokens"),
        ("tensor-parallel degree", neuron.get("tp_degree", "")),
        ("context encoding buckets", buckets.get("context_encoding", "")),
        ("token generation buckets", buckets.get("token_generation", "")),
        ("programs", len(_programs(key)) or "unknown"),
        ("files", "damaged" if damage else "whole"),
    ]
    print_table(Table(f"Artifact {directory}", ("", ""), rows))
    files = [(name, size(entry.size)) for name, entry in sorted(manifest.files.items())]
    print_table(Table("Files", ("file", "size"), files))
    if damage:
        print(damage)
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.loads:
        print("it would load for these flags")
    elif verdict.loads is False:
        print(f"it would not load for these flags: {len(verdict.diff)} differences")
        for line in verdict.diff:
            print(f"  {line}")
