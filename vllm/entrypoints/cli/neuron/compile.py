"""`vllm neuron compile`: make the artifact of a configuration ahead of time, for images, volumes and CI.

Status: 0 the artifact is there, made now or before; 1 the configuration, the checkpoint or the store is at fault, and
nothing was compiled; 2 a wrong command line; 3 the compiler failed; 4 with --dry-run: it is not there yet.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.artifacts.find import ArtifactError, find_artifact, open_or_compile
from vllm.checkpoint import CheckpointError
from vllm.config import VllmConfig
from vllm.device.model import Progress, resolve_target
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.neuron.output import size
from vllm.settings import resolve as platform
from vllm.settings.faults import Faults
from vllm.settings.target import TARGETS, find_target
from vllm.utils.argparse_utils import FlexibleArgumentParser

DONE, FAULTS, USAGE, FAILED, MISSING = 0, 1, 2, 3, 4


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    try:
        config = resolved_config(EngineArgs.from_cli_args(args))
        found = find_artifact(config, resolve_target(config.target))
    except (CheckpointError, ArtifactError, ValueError, ImportError, OSError) as error:
        print(f"vllm neuron compile: {error}", file=sys.stderr)
        return FAULTS
    if found.directory is not None or args.dry_run:
        _report(args, config, found.directory, found.info, hit=found.directory is not None)
        return DONE if found.directory is not None else MISSING
    return _compile(args, config)


def _parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog="vllm neuron compile", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="Say whether it is there, and compile nothing.")
    parser.add_argument("--json", action="store_true", help="Print what was done as JSON.")
    EngineArgs.add_cli_args(parser)
    return parser


def resolved_config(args: EngineArgs, target: str | None = None) -> VllmConfig:
    """The configuration as it will run. A target that can compile here needs no device."""
    if target is None and args.device in TARGETS and find_target(args.device).compiles_here():
        target = args.device
    if target is None:
        return args.create_engine_config()
    faults = Faults()
    return platform.resolve_quietly(args.examined_config(faults), target, faults)[0]


def _compile(args: Any, config: VllmConfig) -> int:
    try:
        with _progress() as progress:
            opened = open_or_compile(config, resolve_target(config.target), progress)
    except (CheckpointError, ArtifactError, ValueError) as error:
        print(f"vllm neuron compile: {error}", file=sys.stderr)
        return FAULTS
    except KeyboardInterrupt:
        print("vllm neuron compile: interrupted; nothing was left behind", file=sys.stderr)
        return FAILED
    except Exception as error:
        print(f"vllm neuron compile: the compiler failed: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    _report(args, config, opened.directory, opened.info, opened.hit)
    return DONE


@contextmanager
def _progress() -> Iterator[Progress]:
    """On stderr: a bar on a terminal, with what is logged above it; elsewhere one line a program."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("compiling", total=1.0)
        with _logging_to(sys.stderr):
            yield lambda what, share: bars.update(task, description=what, completed=share)


@contextmanager
def _logging_to(stream: Any) -> Iterator[None]:
    """The log's lines to `stream`, as the bars have replaced the one that its handlers hold."""
    handlers = [each for each in logging.getLogger("vllm").handlers if type(each) is logging.StreamHandler]
    before = [each.setStream(stream) for each in handlers]
    try:
        yield
    finally:
        for handler, earlier in zip(handlers, before, strict=True):
            if earlier is not None:
                handler.setStream(earlier)


class _Lines:
    """Progress for logs: a line when something else begins, at most one every half second but for the last."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.last = -1.0

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic() - self.started
        if share < 1.0 and 0 <= self.last > now - 0.5:
            return
        self.last = now
        print(f"{100 * share:3.0f} % after {now:.0f} s: {what}", file=sys.stderr)


def _report(args: Any, config: VllmConfig, directory: Path | None, info: Any, hit: bool) -> None:
    if args.json:
        found = {
            "target": config.target,
            "hash": info.hash,
            "artifact": str(directory) if directory else None,
            "hit": hit,
            "reason": info.reason,
            "diff": info.diff,
            "compile_seconds": info.compile_seconds,
        }
        print(json.dumps(found, indent=2))
        return
    if directory is None:
        print(f"would compile {info.hash} for {config.target}: {info.reason}")
        for line in info.diff:
            print(f"  {line}")
    elif hit:
        print(f"already there: {directory}")
    else:
        total = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(f"compiled {directory} in {info.compile_seconds:.1f} s ({size(total)})")
