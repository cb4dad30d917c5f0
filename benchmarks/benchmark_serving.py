"""A server and `vllm bench serve` against it, at several numbers of streams.

    python benchmarks/benchmark_serving.py [--model M] [--streams 1 8 32] [--save]

Ends in one JSON line. `of_limit` is the output rate over what the machine's limits allow for so many sequences in
decode; prefill, HTTP and the client, which runs on the same machine, are what it leaves out.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import Roofline, best_of, finish, measure_limits
from options import as_words, engine_options, make_parser
from ports import free_port

KEPT = (
    "completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "request_throughput",
    "output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "median_itl_ms",
    "p99_itl_ms",
)  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="Requests at once.")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="Requests of each stream.")
    args = parser.parse_args()
    options = engine_options(args, max(args.streams), args.input_len + args.output_len)
    probes, results = [measure_limits()], []
    with serving(options) as url:
        for streams in args.streams:
            results.append(drive(url, streams, args.input_len, args.output_len, streams * args.rounds))
            probes.append(measure_limits())
    limits = best_of(probes)
    roofline = Roofline.of_artifact(artifact_of(options)) if args.device == "cpu" else None
    for result in results:
        if roofline is not None:
            limit = roofline.tokens_per_second(result["streams"], limits)
            result["of_limit"] = round(result["output_throughput"] / limit, 3)
        print(result)
    finish("serving", limits, {"model": options["model"], "results": results}, args.save)


@contextlib.contextmanager
def serving(options: dict[str, Any]) -> Iterator[str]:
    """A server of ours. Yields its URL once it answers."""
    port = free_port()
    words = as_words({name: value for name, value in options.items() if name != "model"})
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options["model"], "--port", str(port)]
    with running([*command, "--disable-uvicorn-access-log", *words], port) as url:
        yield url


@contextlib.contextmanager
def running(command: list[str], port: int, seconds: float = 300, **kwargs: Any) -> Iterator[str]:
    """A server process that has /health. Raises RuntimeError with its log if it does not come up."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **kwargs)
        try:
            deadline = time.monotonic() + seconds
            while not is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not come up:\n{log.read()[-4000:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def drive(url: str, streams: int, input_len: int, output_len: int, num_prompts: int, *words: str) -> dict[str, Any]:
    """What `vllm bench serve` reports of so many streams. Raises RuntimeError if a request fails."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "result.json"
        command = [
            sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--base-url", url, "--disable-tqdm",
            "--num-prompts", str(num_prompts), "--max-concurrency", str(streams), "--num-warmups", str(streams),
            "--input-len", str(input_len), "--output-len", str(output_len), "--ignore-eos",
            "--result-filename", str(file), *words,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the load generator failed:\n{done.stderr[-4000:]}")
        report = json.loads(file.read_text())
    if report["failed"]:
        raise RuntimeError(f"{report['failed']} of {num_prompts} requests failed:\n{done.stderr[-4000:]}")
    return {"streams": streams, **{name: rounded(report[name]) for name in KEPT}}


def rounded(value: float) -> float:
    return round(value, 3) if isinstance(value, float) else value


def artifact_of(options: dict[str, Any]) -> str:
    """The artifact that the server compiled or found."""
    from vllm import LLM

    llm = LLM(**options)
    try:
        return str(llm.llm_engine.executor_stats()["artifact"])
    finally:
        llm.shutdown()


if __name__ == "__main__":
    main()
