"""Speculative decoding of other engines against this one's: the same target, the same draft, the same prompts, in turn.

    python benchmarks/compare_speculation.py [--peers llama.cpp] [--format q8_0] [--num-drafts 4] [--rounds 3] [--save]

The draft is the shallow one of `train_drafts.py`, written as GGUF, which every engine reads. Each engine serves HTTP
with each method and without any, all at the same time; requests are made one after the other, so that those that wait
take nothing from the one that works. Greedy; a rate counts the tokens after the first event of a stream, and the time
after it. `ratio`: of a round's rate to that of the same engine and round without speculation, median over rounds.

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from comparing import complete, install, make_parser, model_files, model_of, run, say, serve, versions_of
from drafts.prompts import TASKS, make_prompts
from machine import best_of, finish, measure_limits
from peers.base import Engine, PeerError, Service, Speculation
from peers.ours import Ours
from train_drafts import make_drafts

from vllm.checkpoint import open_checkpoint
from vllm.engine.text.tokenizer import Tokenizer

PLAIN = "none"
Server = tuple[str, str]
"""Engine and method."""


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--format", default="q8_0", help="Of the target's weights and the draft's.")
    parser.add_argument("--num-drafts", type=int, default=4, help="Most drafts in a row; twice as many by lookup.")
    parser.add_argument("--draft-scale", type=float, default=1.0, help="--scale of train_drafts.py.")
    parser.add_argument("--prompts", type=int, default=4, help="Of each kind of text.")
    parser.add_argument("--prompt-len", type=int, default=256, help="Longest prompt, in tokens.")
    parser.add_argument("--output-len", type=int, default=128)
    run(compare, parser.parse_args())


def compare(args: argparse.Namespace, kinds: Sequence[type[Engine]]) -> None:
    engines = install(kinds, args)
    files = model_files(None, args.cache_dir)
    draft = files.layers(make_drafts(None, ("draft",), scale=args.draft_scale)["draft"]["directory"], args.format)
    methods = {
        PLAIN: None,
        "ngram": Speculation("ngram", 2 * args.num_drafts),
        "draft_model": Speculation("draft_model", args.num_drafts, draft),
    }
    length = args.prompt_len + args.output_len + 16
    services = {name: Service(1, length, speculation=method) for name, method in methods.items()}
    tokenizer = Tokenizer.load(open_checkpoint(files.source))
    prompts = {task: make_prompts(tokenizer, task, args.prompts, args.prompt_len) for task in TASKS}
    probes = [measure_limits()]
    rates: dict[tuple[Server, str], list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        urls = {
            (engine.name, name): stack.enter_context(serve(engine, files, args.format, service))
            for engine in engines
            for name, service in services.items()
        }
        for number in range(args.rounds + 1):
            say(f"round {number} of {args.rounds}; the first does not count")
            for (server, task), rate in one_round(urls, prompts, args.output_len, backwards=number % 2 == 1).items():
                rates[server, task] += [rate] * (number > 0)
            probes.append(measure_limits())
    table = summary(rates)
    for row in table:
        print("{engine:10} {method:12} {text:10} {tokens_per_s:7.1f} {ratio:6.2f} x".format(**row))
    result = {"engines": versions_of(engines), "format": args.format, "table": table}
    finish("peers-speculation", best_of(probes), result, args.save)


def one_round(
    urls: dict[Server, str], prompts: dict[str, list[list[int]]], output_len: int, backwards: bool
) -> dict[tuple[Server, str], float]:
    """Tokens a second by server and kind of text. Raises PeerError where drafts change our text."""
    rates = {}
    for task, several in prompts.items():
        texts = {}
        for server in list(urls)[:: -1 if backwards else 1]:
            runs = [generate(urls[server], prompt, output_len) for prompt in several]
            texts[server] = [text for text, _, _ in runs]
            rates[server, task] = sum(tokens for _, tokens, _ in runs) / sum(seconds for _, _, seconds in runs)
        for server, own in texts.items():
            if server[0] == Ours.name and own != texts[Ours.name, PLAIN]:
                raise PeerError(f"{server[1]} generated another text than plain decoding ({task})")
    return rates


def generate(url: str, prompt: list[int], output_len: int) -> tuple[str, int, float]:
    """The text of a stream; its tokens after the first, and the seconds after its first event."""
    pieces, first = [], 0.0
    with complete(url, model=model_of(url), prompt=prompt, max_tokens=output_len, stream=True) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter()
            pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    return "".join(pieces), output_len - 1, time.perf_counter() - first


def summary(rates: dict[tuple[Server, str], list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "engine": engine,
            "method": method,
            "text": task,
            "tokens_per_s": round(statistics.median(own), 1),
            "ratio": round(
                statistics.median(rate / plain for rate, plain in zip(own, rates[(engine, PLAIN), task], strict=True)),
                3,
            ),
        }
        for ((engine, method), task), own in rates.items()
    ]


if __name__ == "__main__":
    main()
