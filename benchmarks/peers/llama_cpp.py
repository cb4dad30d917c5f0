"""llama.cpp, built for this machine from the sources that the PyPI package llama-cpp-python carries.

Measured with its own tools: llama-batched-bench (it does not sample, which is in its favour), llama-bench for the first
token, llama-server.
"""

from __future__ import annotations

import json
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from benchmark_serving import running
from engine_runs import Job
from model_files import WIDTHS, ModelFiles
from ports import free_port

from peers.base import Engine, PeerError, Rates, Service, Speculation

PACKAGE = "llama-cpp-python"
TOOLS = ("llama-batched-bench", "llama-bench", "llama-server")
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
CELLS = 256
"""A sequence's share of the KV cache is a multiple of this."""


class LlamaCpp(Engine):
    name = "llama.cpp"
    variants = ("-fa on", "-fa off")

    def install(self) -> None:
        self.make_venv("cmake", "ninja")
        if not all(self._tool(tool).exists() for tool in TOOLS):
            self._build(self._source())

    def version(self) -> str:
        return f"{PACKAGE} {next(self.home.glob('*.tar.gz')).name.removesuffix('.tar.gz').rpartition('-')[2]}"

    def own_format(self, format: str) -> str | None:
        return format if format in WIDTHS else None

    def prepare(self, files: ModelFiles, format: str) -> Path:
        return files.gguf(format)

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        rates = {}
        for batch in job.batches:
            rows = self._batched(model, job.prompt_len, job.output_len, batch, job.repeats, variant)
            rates[f"decode {batch}"] = median(row["speed_tg"] for row in rows)
        if job.prefill_len:
            rows = self._batched(model, job.prefill_len, 1, 1, max(job.repeats, 3), variant)
            rates[f"prefill {job.prefill_len}"] = median(row["speed_pp"] for row in rows)
        return rates

    def first_token_command(self, model: Path) -> list[str]:
        options = ["-p", "16", "-n", "0", "-r", "1", "--no-warmup", "-t", str(self.threads)]
        return [str(self._tool("llama-bench")), "-m", str(model), *options]

    def serving(self, model: Path, service: Service) -> AbstractContextManager[str] | None:
        port = free_port()
        command = [
            str(self._tool("llama-server")), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
            "-np", str(service.streams), "-c", str(service.streams * _cells(service.length)), "-t", str(self.threads),
            "-tb", str(self.threads), *self.variants[0].split(),
            "--cache-prompt" if service.caches_prefixes else "--no-cache-prompt",
        ]  # fmt: skip
        return running(command + _words_of(service.speculation), port, env=self.environment())

    def _batched(
        self, model: Path, prompt_len: int, output_len: int, batch: int, repeats: int, variant: str
    ) -> list[dict[str, float]]:
        """A row for each repeat."""
        command = [
            str(self._tool("llama-batched-bench")), "-m", str(model),
            "-c", str(batch * _cells(prompt_len + output_len)),
            "-b", "2048", "-ub", "512", "-npp", str(prompt_len), "-ntg", str(output_len),
            "-npl", ",".join([str(batch)] * repeats), "-t", str(self.threads), "-tb", str(self.threads),
            "--output-format", "jsonl", *variant.split(),
        ]  # fmt: skip
        output = self.run(command)
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if len(rows) != repeats:
            raise PeerError(f"{self.name}: {len(rows)} results of {repeats}:\n{output[-2000:]}")
        return rows

    def _tool(self, name: str) -> Path:
        return self.home / "build" / "bin" / name

    def _source(self) -> Path:
        """The sources of llama.cpp, out of the source distribution."""
        if not list(self.home.glob("*.tar.gz")):
            words = ["download", "--quiet", "--no-deps", "--no-binary", PACKAGE, PACKAGE, "--dest", str(self.home)]
            self.run([str(self.python), "-m", "pip", *words])
        archive = next(self.home.glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(self.home / "source", filter="data")
        return next((self.home / "source").glob("*/vendor/llama.cpp"))

    def _build(self, source: Path) -> None:
        programs = self.python.parent
        build = str(self.home / "build")
        flags = [f"-D{name}={value}" for name, value in FLAGS.items()]
        ninja = f"-DCMAKE_MAKE_PROGRAM={programs / 'ninja'}"
        self.run([str(programs / "cmake"), "-S", str(source), "-B", build, "-G", "Ninja", ninja, *flags])
        words = ["--build", build, "--parallel", str(self.threads), "--target", *TOOLS]
        self.run([str(programs / "cmake"), *words])


def _words_of(speculation: Speculation | None) -> list[str]:
    """It has several ways to look text up: this one drafts what followed the last tokens before."""
    if speculation is None:
        return []
    count = str(speculation.num_drafts)
    if speculation.draft is None:
        return ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", count]
    return ["--spec-type", "draft-simple", "--model-draft", str(speculation.draft), "--spec-draft-n-max", count]


def _cells(length: int) -> int:
    return -(-length // CELLS) * CELLS
