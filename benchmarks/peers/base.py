"""What an engine must be able to do to be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_runs import Job
from model_files import ModelFiles

HERE = Path(__file__).resolve().parent

Rates = dict[str, float]
"""Tokens a second: "decode N" for N sequences, "prefill N" for a prompt of N tokens."""


class PeerError(Exception):
    """A peer could not be installed or did not run. The message holds the end of its log."""


@dataclass(frozen=True)
class Speculation:
    """How drafts are made: "ngram", or "draft_model" by a GGUF file; the most of them in a row."""

    method: str
    num_drafts: int
    draft: Path | None = None


@dataclass(frozen=True)
class Service:
    """What a server is to be good for. length: of a stream, in tokens."""

    streams: int
    length: int
    caches_prefixes: bool = False
    speculation: Speculation | None = None


class Engine:
    """One engine. Methods that measure start a process, and wait for its end.

    name: as the table has it. variants: settings to try, of which the best counts, case by case. starts_slowly: so
    much so that all cases of a round are run in one process.
    """

    name: str
    variants: Sequence[str] = ("default",)
    starts_slowly = False

    def __init__(self, cache: Path, threads: int) -> None:
        self.home = cache / self.name.replace(" ", "-")
        self.threads = threads

    def install(self) -> None:
        """Make the environment if it is not there. May take minutes, and the network."""

    def version(self) -> str:
        raise NotImplementedError

    def own_format(self, format: str) -> str | None:
        """What it makes of a weight format; None if it has nothing like it."""
        raise NotImplementedError

    def prepare(self, files: ModelFiles, format: str) -> Path:
        """The model in that format, converted if need be."""
        raise NotImplementedError

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        raise NotImplementedError

    def first_token_command(self, model: Path) -> list[str]:
        """A process that generates one token; it prints a line "first token" then, or ends."""
        raise NotImplementedError

    def serving(self, model: Path, service: Service) -> AbstractContextManager[str] | None:
        """A server that yields its URL; None if the engine has none of that kind."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Of its processes: nothing of this checkout."""
        return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    # Helpers.

    @property
    def python(self) -> Path:
        return self.home / "venv" / "bin" / "python"

    def make_venv(self, *packages: str) -> None:
        """A virtual environment with these packages of the Python Package Index; once."""
        if not self.python.exists():
            venv.create(self.home / "venv", with_pip=True)
        done = self.home / "packages.json"
        if not done.exists() or json.loads(done.read_text()) != list(packages):
            self.run([str(self.python), "-m", "pip", "install", "--quiet", *packages])
            done.write_text(json.dumps(packages))

    def package_version(self, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        return self.run([str(self.python), "-c", code]).strip()

    def run(self, command: list[str]) -> str:
        """The output of a command. Raises PeerError if it fails."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment())
        if done.returncode:
            log = (done.stdout + done.stderr)[-3000:]
            raise PeerError(f"{self.name}: {' '.join(command)} ended with status {done.returncode}:\n{log}")
        return done.stdout


def last_json(output: str) -> dict[str, Any]:
    """The last line of an output that is a JSON object. Raises PeerError if there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    raise PeerError(f"no result in the output:\n{output[-2000:]}")


def named_rates(result: dict[str, Any], job: Job) -> Rates:
    """From the line that `engine_runs.py` prints."""
    rates = {f"decode {batch}": rate for batch, rate in result["decode"].items()}
    return rates | ({f"prefill {job.prefill_len}": result["prefill"]} if "prefill" in result else {})


def first_token_job() -> Job:
    """Nothing but the start."""
    return Job(batches=[], prefill_len=0)


def job_words(script: Path, engine: dict[str, Any], job: Job) -> list[str]:
    return [str(script), json.dumps({"engine": engine, **vars(job)})]


THIS_PYTHON = sys.executable
