"""What the scripts that compare engines share: their options, the engines themselves, and what is said on the way."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from http.client import HTTPResponse
from json import dumps, load
from pathlib import Path
from typing import Any

from model_files import LLAMA_1B, LLAMA_1B_VOCAB, ModelFiles, write_random_llama, write_whole
from options import default_model
from peers.base import Engine, PeerError, Service
from peers.llama_cpp import LlamaCpp
from peers.openvino import OpenVino
from peers.ours import Ours
from peers.vllm_cpu import VllmCpu

PEERS: dict[str, type[Engine]] = {each.name: each for each in (LlamaCpp, OpenVino, VllmCpu)}


def make_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=["llama.cpp"])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="Of each peer.")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/vllm-peers").expanduser())
    parser.add_argument("--save", action="store_true", help="Keep the result in benchmarks/results/.")
    return parser


def run(compare: Callable[[argparse.Namespace, Sequence[type[Engine]]], None], args: argparse.Namespace) -> None:
    """Compare this engine with those that were asked for. Ends the process with a message where one fails; SIGTERM is
    met as Ctrl-C is."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        compare(args, [Ours, *(PEERS[name] for name in args.peers)])
    except PeerError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def install(kinds: Sequence[type[Engine]], args: argparse.Namespace) -> list[Engine]:
    engines = [kind(args.cache_dir, args.threads) for kind in kinds]
    for engine in engines:
        say(f"installing {engine.name}")
        engine.home.mkdir(parents=True, exist_ok=True)
        engine.install()
    return engines


def model_files(model: str | None, cache: Path) -> ModelFiles:
    """Of a GGUF file; None: SmolLM2-135M; llama-1b: random weights, made once."""
    if model != "llama-1b":
        return ModelFiles(Path(model or default_model()), cache / "models")
    path = cache / "models" / "llama-1b.gguf"
    if not path.exists():
        write_whole(path, lambda part: write_random_llama(part, Path(default_model()), LLAMA_1B, LLAMA_1B_VOCAB))
    return ModelFiles(path, cache / "models")


def versions_of(engines: Sequence[Engine]) -> dict[str, str]:
    return {engine.name: engine.version() for engine in engines}


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def serve(engine: Engine, files: ModelFiles, format: str, service: Service) -> AbstractContextManager[str]:
    """A server of the model in that format, or in bf16 where the engine has nothing like it. Raises PeerError."""
    server = engine.serving(engine.prepare(files, format if engine.own_format(format) else "bf16"), service)
    if server is None:
        raise PeerError(f"{engine.name} has no server for {service}")
    return server


def model_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        return str(load(answer)["data"][0]["id"])


def complete(url: str, **fields: Any) -> HTTPResponse:
    """The answer to a greedy completion of exactly so many tokens, to be read and closed."""
    body = {"temperature": 0, "ignore_eos": True, **fields}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", dumps(body).encode(), headers)
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=300)
    return answer
