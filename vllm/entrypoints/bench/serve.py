"""`vllm bench serve`: requests to a running server of the OpenAI API, timed at the client."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from vllm import envs
from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.bench import speculation
from vllm.entrypoints.bench.datasets import SampleRequest, add_dataset_args, load_requests
from vllm.entrypoints.bench.endpoints import ENDPOINTS, Endpoint, error_text, read_stream, request_body
from vllm.entrypoints.bench.http_client import Exchange, HttpClient
from vllm.entrypoints.bench.load import arrival_times, send_all
from vllm.entrypoints.bench.results import METRICS, RequestResult, render, summarise
from vllm.logger import visible
from vllm.sample.table import ROWS, Effect
from vllm.utils.argparse_utils import FlexibleArgumentParser

_CANDIDATES = [row for row in ROWS.values() if row.effect is Effect.CANDIDATES]
_GOALS = ("ttft", "tpot", "e2el")
_DETAILS = {
    "input_lens": "prompt_len",
    "output_lens": "output_len",
    "ttfts": "ttft",
    "itls": "itl",
    "latencies": "e2el",
    "start_times": "start",
    "queue_times": "waited",
    "generated_texts": "text",
    "errors": "error",
}
"""Of each request: the report's entry, and the field of its result."""
_ALWAYS = ("latencies", "queue_times")
"""Those that are saved without --save-detailed too, as vLLM does."""


def main(argv: list[str]) -> int:
    parser = FlexibleArgumentParser(prog="vllm bench serve", description=__doc__)
    add_cli_args(parser)
    args = parser.parse_args(argv)
    try:
        check_args(args)
        report = asyncio.run(run(args))
    except (ValueError, OSError) as error:
        print(f"vllm bench serve: {error}", file=sys.stderr)
        return 1
    print(render(report, args.percentile_metrics))
    save(args, report)
    if report["failed"]:
        first = visible(next(filter(None, report["errors"])))
        print(f"{report['failed']} failed, the first: {first}", file=sys.stderr)
    return 0 if report["completed"] else 1


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("Server")
    server.add_argument("--backend", "--endpoint-type", choices=sorted(ENDPOINTS), default="openai", help="Which API.")
    server.add_argument("--base-url", default=None, help="URL of the server, instead of host and port.")
    server.add_argument("--host", default="127.0.0.1", help="Host of the server.")
    server.add_argument("--port", type=int, default=8000, help="Port of the server.")
    server.add_argument("--endpoint", default=None, help="Path. Default: that of the backend.")
    server.add_argument("--model", default=None, help="Name in requests. Default: the first that the server has.")
    server.add_argument("--served-model-name", default=None, help="Name in requests, where --model is a path.")
    server.add_argument(
        "--tokenizer", default=None, help="Checkpoint with the tokenizer. Default: --model, or what the server loaded."
    )
    server.add_argument("--header", nargs="+", default=[], metavar="NAME=VALUE", help="Headers of each request.")
    server.add_argument(
        "--ready-check-timeout-sec", type=float, default=600, help="Seconds to wait until the server answers."
    )
    add_dataset_args(parser)
    load = parser.add_argument_group("Load")
    load.add_argument(
        "--request-rate", type=float, default=float("inf"), help="Requests a second. Default: all at once."
    )
    load.add_argument("--burstiness", type=float, default=1.0, help="1: Poisson; less: bursts; more: evenly.")
    load.add_argument("--max-concurrency", type=int, default=None, help="Most requests under way at once.")
    load.add_argument("--num-warmups", type=int, default=0, help="Further requests, before the measured ones.")
    load.add_argument("--disable-tqdm", action="store_true", help="No progress bar.")
    sampling = parser.add_argument_group("Sampling")
    sampling.add_argument("--ignore-eos", action="store_true", help="Generate all of the tokens that are asked for.")
    sampling.add_argument("--temperature", type=float, default=0.0, help="Default: 0, greedy.")
    for row in _CANDIDATES:
        flag = f"--{row.name.replace('_', '-')}"
        sampling.add_argument(flag, type=float if row.kind == "number" else int, default=None, help=row.help)
    sampling.add_argument("--extra-body", type=json.loads, default={}, help="Further fields of requests, as JSON.")
    report = parser.add_argument_group("Report")
    report.add_argument("--percentile-metrics", default="ttft,tpot,itl", help=f"Of {','.join(METRICS)}.")
    report.add_argument("--metric-percentiles", default="99", help="Such as 50,90,99.")
    report.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help=f"Goals of a good request: {', '.join(_GOALS)}."
    )
    report.add_argument("--save-result", action="store_true", help="Write the report as JSON.")
    report.add_argument("--save-detailed", action="store_true", help="Write it with each request's times and text.")
    report.add_argument("--result-dir", default=None, help="Where. Default: here.")
    report.add_argument(
        "--result-filename", default=None, help="Its name. Default: from backend, rate, model and date."
    )
    report.add_argument("--metadata", nargs="+", default=[], metavar="KEY=VALUE", help="Further entries of the report.")
    report.add_argument("--label", default=None, help="The report's entry `label`.")


def check_args(args: argparse.Namespace) -> None:
    """Bring options to their types. Raises ValueError with what would work."""
    args.percentile_metrics = _metric_names(args.percentile_metrics)
    args.metric_percentiles = [float(each) for each in str(args.metric_percentiles).split(",")]
    if not all(0 <= each <= 100 for each in args.metric_percentiles):
        raise ValueError(f"--metric-percentiles must lie between 0 and 100: {args.metric_percentiles}")
    args.goodput = parse_goodput(args.goodput)
    args.header = _pairs("--header", args.header)
    args.metadata = _pairs("--metadata", args.metadata)
    for name in ("request_rate", "burstiness", "max_concurrency"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, not {value}")
    if not isinstance(args.extra_body, dict):
        raise ValueError(f"--extra-body must be a JSON object, not {args.extra_body!r}")


def _metric_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"--percentile-metrics knows {', '.join(METRICS)}, not {name!r}")
    return names


def parse_goodput(pairs: list[str]) -> dict[str, float]:
    """Milliseconds by metric, of METRIC:MS."""
    goals: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        try:
            goals[name] = float(value)
        except ValueError:
            raise ValueError(f"--goodput takes METRIC:MS, such as ttft:200, not {pair!r}") from None
        if name not in _GOALS or not goals[name] >= 0:
            raise ValueError(f"--goodput takes {', '.join(_GOALS)} and milliseconds of at least 0, not {pair!r}")
    return goals


def _pairs(option: str, pairs: list[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    if not all(name and equals for name, equals, _ in split):
        raise ValueError(f"{option} takes NAME=VALUE, not {' '.join(pairs)!r}")
    return {name: value for name, _, value in split}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Wait for the server, send everything, and report. Raises OSError if no server answers, ValueError for options."""
    headers = {"Authorization": f"Bearer {envs.VLLM_API_KEY}"} if envs.VLLM_API_KEY else {}
    client = HttpClient(args.base_url or f"http://{args.host}:{args.port}", {**headers, **args.header})
    try:
        card = await served_model(client, args.ready_check_timeout_sec)
        model = args.served_model_name or args.model or card.get("id")
        if model is None:
            raise ValueError(f"{client.base_url} lists no models: say --model")
        tokenizer = load_tokenizer(args.tokenizer or args.model or card.get("root") or model)
        requests = load_requests(args, tokenizer, args.num_warmups)
        before = await speculation.read_drafts(client)
        results, duration = await send_requests(client, args, model, requests, tokenizer)
        drafts = speculation.summarise(before, await speculation.read_drafts(client))
    finally:
        client.close()
    report = summarise(results, duration, args.percentile_metrics, args.metric_percentiles, args.goodput)
    return {**header(args, model, tokenizer), **report, **drafts, **details(results)}


async def served_model(client: HttpClient, seconds: float) -> dict[str, Any]:
    """The server's first model, as /v1/models shows it; empty if the server has no such list."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            exchange = await client.get("/v1/models")
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise OSError(f"no server answers at {client.base_url}: {error}") from None
            await asyncio.sleep(0.2)
    if exchange.status in (401, 403):
        raise ValueError(f"{client.base_url} refuses: {error_text(exchange.body)} (set VLLM_API_KEY, or --header)")
    try:
        return dict(json.loads(exchange.body)["data"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return {}


def load_tokenizer(source: str) -> Tokenizer:
    try:
        return Tokenizer.load(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"there is no tokenizer in {source!r}: say --tokenizer PATH ({error})") from None


async def send_requests(
    client: HttpClient, args: argparse.Namespace, model: str, requests: list[SampleRequest], tokenizer: Tokenizer
) -> tuple[list[RequestResult], float]:
    """What became of each request, and the seconds that all took. The first `num_warmups` go before, unmeasured."""
    api = ENDPOINTS[args.backend]
    path = args.endpoint or api.path
    options = sampling_options(args)

    async def send(body: bytes) -> Exchange | OSError:
        try:
            return await client.post(path, body)
        except OSError as error:
            return error

    bodies = [request_body(api, model, request.prompt, request.output_len, options) for request in requests]
    warmups, bodies, requests = bodies[: args.num_warmups], bodies[args.num_warmups :], requests[args.num_warmups :]
    await send_all(warmups, send, [0.0] * len(warmups), args.max_concurrency)
    arrivals = arrival_times(len(bodies), args.request_rate, args.burstiness, np.random.default_rng(args.seed))
    with tqdm(total=len(bodies), disable=args.disable_tqdm) as bar:
        answers, waits, duration = await send_all(bodies, send, arrivals, args.max_concurrency, bar.update)

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    results = [_result(api, answer, request, count) for answer, request in zip(answers, requests, strict=True)]
    for result, waited in zip(results, waits, strict=True):
        result.waited = waited
    return results, duration


def _result(api: Endpoint, answer: Exchange | OSError, request: SampleRequest, count: Any) -> RequestResult:
    if isinstance(answer, OSError):
        return RequestResult(request.prompt_len, error=f"{type(answer).__name__}: {answer}")
    return read_stream(api, answer, request.prompt_len, count)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that the command line asks for."""
    options = {name: getattr(args, name) for name in ("temperature", *(row.name for row in _CANDIDATES))}
    if args.ignore_eos:
        options["ignore_eos"] = True
    return {**{name: value for name, value in options.items() if value is not None}, **args.extra_body}


def header(args: argparse.Namespace, model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """What was measured, and how."""
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": args.backend,
        "backend": args.backend,
        "label": args.label,
        "model_id": model,
        "tokenizer_id": tokenizer.name_or_path,
        "dataset_name": args.dataset_name,
        "num_prompts": args.num_prompts,
        **args.metadata,
        "request_rate": args.request_rate if np.isfinite(args.request_rate) else "inf",
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
    }


def details(results: list[RequestResult]) -> dict[str, list[Any]]:
    """Each request's lengths, times (seconds) and text, in the order of the requests."""
    return {name: [getattr(each, field) for each in results] for name, field in _DETAILS.items()}


def save(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """Write the report, if it was asked for."""
    if not (args.save_result or args.save_detailed or args.result_filename):
        return
    dropped = () if args.save_detailed else _DETAILS.keys() - set(_ALWAYS)
    kept = {name: value for name, value in report.items() if name not in dropped}
    rate = f"{report['request_rate']}qps"
    name = f"{args.backend}-{rate}-{Path(report['model_id']).name}-{report['date']}.json"
    path = Path(args.result_dir or ".").expanduser() / (args.result_filename or name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, allow_nan=False) + "\n")
