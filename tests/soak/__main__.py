"""`make soak`, `python -m tests.soak --minutes 30`: mixed traffic for as long as told, and whether all stays flat.

Starts a server of its own (a tiny random checkpoint on the `null` target unless told otherwise), records memory, rows,
queue and handles, writes them to `--out` (samples.csv, soak.svg), and ends with one JSON line. Exit status 1 if an
answer was wrong, something rose, or anything was still held at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.server.process import ServerProcess, serve
from tests.soak.report import Sample, faults, growth, write_csv, write_svg
from tests.soak.traffic import Traffic

MAX_MODEL_LEN = 512


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=5.0, help="Requests a second, on average.")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--device", default="null", choices=["null", "cpu"])
    parser.add_argument("--model", type=Path, default=None, help="Default: a tiny random Llama.")
    parser.add_argument("--interval", type=float, default=5.0, help="Seconds between two samples.")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("server_options", nargs="*", help="After --: further options of the server.")
    return parser.parse_args(argv)


async def soak(server: ServerProcess, args: argparse.Namespace) -> tuple[Traffic, list[Sample]]:
    samples: list[Sample] = []
    # The client drops an idle connection before the server does, or a request could meet the server's closing it.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=server.url, timeout=900, limits=limits) as http:
        traffic = Traffic(http, rate=args.rate, max_model_len=MAX_MODEL_LEN, seed=args.seed)
        await traffic.learn()
        sampling = asyncio.create_task(_sample_regularly(server, http, samples, args.interval))
        await traffic.run(args.minutes * 60)
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        samples.append(await _settled(server, http, samples[0].seconds if samples else 0.0))
    return traffic, [_since(samples[0], sample) for sample in samples]


async def _sample_regularly(
    server: ServerProcess, http: httpx.AsyncClient, samples: list[Sample], interval: float
) -> None:
    while True:
        samples.append(await _sample(server, http))
        await asyncio.sleep(interval)


async def _sample(server: ServerProcess, http: httpx.AsyncClient) -> Sample:
    metrics = _gauges((await http.get("/metrics")).text)
    front, engine = psutil.Process(server.process.pid), server.engine
    return Sample(
        seconds=time.monotonic(),
        server_mib=front.memory_info().rss / 2**20,
        engine_mib=engine.memory_info().rss / 2**20,
        running=metrics["vllm:num_requests_running"],
        waiting=metrics["vllm:num_requests_waiting"],
        files=front.num_fds() + engine.num_fds(),
        threads=front.num_threads() + engine.num_threads(),
    )


async def _settled(server: ServerProcess, http: httpx.AsyncClient, started: float) -> Sample:
    """The last sample: when nothing runs any more, or what still does after five seconds."""
    for _ in range(50):
        sample = await _sample(server, http)
        if not sample.running and not sample.waiting:
            break
        await asyncio.sleep(0.1)
    return sample


def _gauges(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, _, value in lines}


def _since(first: Sample, sample: Sample) -> Sample:
    return Sample(**{**vars(sample), "seconds": round(sample.seconds - first.seconds, 2)})


@contextlib.contextmanager
def _model(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    from tests.tiny import make_checkpoint

    with tempfile.TemporaryDirectory() as directory:
        yield make_checkpoint(Path(directory))


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    options = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(args.rows), *args.server_options]
    options += ["--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"]
    with _model(args.model) as model, serve(model, *options, device=args.device) as server:
        traffic, samples = asyncio.run(soak(server, args))
        logged = [line for line in server.log if "Traceback" in line or " ERROR " in line]
    title = f"{args.device}, {args.minutes:g} minutes, {args.rate:g} requests a second, {args.rows} rows"
    write_csv(samples, args.out / "samples.csv")
    write_svg(samples, title, args.out / "soak.svg")
    wrong = [*traffic.failures[:20], *logged[:20], *faults(samples)]
    summary = {
        "minutes": args.minutes,
        "rate": args.rate,
        "rows": args.rows,
        "device": args.device,
        "requests": dict(sorted(traffic.done.items())),
        "failures": len(traffic.failures),
        "growth_mib": {name: round(growth(samples, name), 2) for name in ("server_mib", "engine_mib")},
        "memory_mib": {"server": round(samples[-1].server_mib), "engine": round(samples[-1].engine_mib)},
        "most_waiting": max(sample.waiting for sample in samples),
        "wrong": wrong,
    }
    print(json.dumps(summary))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
