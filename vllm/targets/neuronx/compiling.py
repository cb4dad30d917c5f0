"""Running the library's compiler: in a scratch directory of its own, and once again if it fails.

What is shown is the first error of the first attempt: those that follow are mostly its consequences. The library says
nothing of how far it is, but leaves each program in the scratch directory as soon as it is compiled, under
`<model>/_tp0_bk<place of its bucket>/`: progress is what is found there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vllm import envs
from vllm.device.model import Progress
from vllm.exceptions import VLLMError
from vllm.logger import init_logger

logger = init_logger(__name__)

COMPILER_LOG = "log-neuron-cc.txt"
_PROGRAMS = "_tp0_bk*/graph.neff"
_ATTEMPTS = 2
_LOOK_SECONDS = 0.5
_SHARE_OF_PROGRAMS = 0.95
"""The rest is the sharding of weights."""
_FINAL = (ValueError, TypeError, AssertionError, NotImplementedError, AttributeError, KeyError, ImportError)
"""Errors of the library's checks: a second attempt would fail alike."""


class CompilationFailed(VLLMError):
    """The library could not compile the model. The message holds the first error of the first attempt."""


def compile_into(
    directory: Path,
    compile_model: Callable[[Path], None],
    num_shards: int,
    progress: Progress,
    num_programs: int,
    parts: Sequence[str] = ("",),
) -> None:
    """Fill `directory` (empty, private to this call) by `compile_model(directory)`, and check that all of it is there.

    num_shards: files of sharded weights that must have been written; 0 where weights are no part of the artifact.
    num_programs: that will be compiled; `progress` is called from another thread while they are.
    parts: where programs and weights lie, below `directory`: paths that end in a slash, or "" for itself.
    """
    if any(directory.iterdir()):
        raise CompilationFailed(f"{directory} is not empty; it is left as it is")
    first = ""
    for attempt in range(1, _ATTEMPTS + 1):
        what = f"neuronx-cc, attempt {attempt}" if attempt > 1 else "neuronx-cc"
        progress(what, 0.0)
        with scratch_directory() as scratch:
            try:
                with _watched(scratch, what, num_programs, progress):
                    compile_model(directory)
            except _FINAL as error:
                raise CompilationFailed(f"NxD Inference refused to compile: {_said(error)}") from error
            except Exception as error:
                message = _first_compiler_error(scratch) or _said(error)
                first = first or message
                logger.warning("compiling failed (attempt %d of %d): %s", attempt, _ATTEMPTS, message)
                if attempt == _ATTEMPTS:
                    raise CompilationFailed(
                        f"compiling failed {_ATTEMPTS} times; the first error was: {first}"
                    ) from error
                _empty(directory)
            else:
                break
    _check_complete(directory, num_shards, parts)
    progress("compiled", 1.0)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A compiler work directory nobody else uses: the library's default is shared by all processes of a host."""
    before = envs.BASE_COMPILE_WORK_DIR
    if before:
        Path(before).mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="neuronx-compile-", dir=before or None))
    os.environ.update(BASE_COMPILE_WORK_DIR=f"{scratch}/")
    try:
        yield scratch
    finally:
        os.environ.pop("BASE_COMPILE_WORK_DIR")
        if before:
            os.environ.update(BASE_COMPILE_WORK_DIR=before)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _watched(scratch: Path, what: str, num_programs: int, progress: Progress) -> Iterator[None]:
    """Reports each program that appears in `scratch` during the block, and those that did when it ends."""
    seen: set[Path] = set()
    ended = threading.Event()

    def look() -> None:
        for program in sorted(set(scratch.rglob(_PROGRAMS)) - seen):
            seen.add(program)
            share = min(len(seen) / max(num_programs, 1), 1.0)
            progress(f"{what}: {_program_name(program, scratch)}", _SHARE_OF_PROGRAMS * share)

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            look()

    watcher = threading.Thread(target=watch, name="compile-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()


def _program_name(program: Path, scratch: Path) -> str:
    model, place = program.parent.relative_to(scratch).parts[-2:]
    return f"{model}, bucket {int(place.rpartition('bk')[2]) + 1}"


def _first_compiler_error(scratch: Path) -> str:
    """The first line that the compiler logged as an error, in the log that was written first."""
    logs = sorted(scratch.rglob(COMPILER_LOG), key=lambda log: log.stat().st_mtime_ns)
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if "ERROR" in line:
                return f"{line.strip()} ({log.parent.relative_to(scratch)})"
    return ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _empty(directory: Path) -> None:
    """Remove what the failed attempt wrote; nothing else was here."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_complete(directory: Path, num_shards: int, parts: Sequence[str]) -> None:
    files = ["model.pt", *(f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(num_shards))]
    needed = ["neuron_config.json", *(f"{part}{name}" for part in parts for name in files)]
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise CompilationFailed(f"the compiler ended without an error, but wrote no {', '.join(missing)}")
