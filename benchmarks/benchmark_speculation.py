"""Speculative decoding against its absence: tokens a second and acceptance, by method, number of rows and kind of text.

    python benchmarks/benchmark_speculation.py [--model M | tiny] [--methods ngram draft_model eagle eagle3]
        [--rows 1 4 16] [--tasks plain repeating] [--num-speculative-tokens N] [--temperature T] [--rounds 3] [--save]

Drafts are those of `train_drafts.py`, made if they are not there. An engine for each method, and one without (with
several methods two), are loaded side by side and take turns of a few steps, so that a change of the machine's speed
meets all of them. Rows are kept busy: another request takes the place of each that ends. A `ratio` is the median over
rounds of a round's rate over that of the first engine without speculation; that of the second says what the measurement
is worth. `tokens_a_step` is what a step brought a row, 1 without drafts. Every method must generate the very tokens
that plain decoding does.

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from typing import Any

from drafts.prompts import TASKS, make_prompts
from engine_runs import run_prompts
from machine import best_of, finish, measure_limits
from options import default_model, engine_options, make_parser
from steady import SteadyRate, SteadyRun, run_side_by_side
from train_drafts import make_drafts

from vllm import LLM

METHODS = ("ngram", "draft_model", "eagle", "eagle3")
PLAIN, PLAIN_AGAIN = "none", "none again"
NUM_PROMPTS = 32
_KINDS = {"draft_model": "draft", "eagle": "eagle", "eagle3": "eagle3"}
Case = tuple[str, int]
Round = dict[tuple[Case, str], SteadyRate]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--num-speculative-tokens", type=int, default=None, help="Default: the method's own.")
    parser.add_argument(
        "--spec-args", type=json.loads, default={}, help="Further entries of speculative_config, as JSON."
    )
    parser.add_argument("--draft-scale", type=float, default=1.0, help="--scale of train_drafts.py.")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompt-len", type=int, default=256, help="Longest prompt, in tokens.")
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--requests-per-row", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    engines = load_engines(args)
    prompts = {
        task: make_prompts(engines[PLAIN].get_tokenizer(), task, NUM_PROMPTS, args.prompt_len) for task in args.tasks
    }
    cases = [(task, rows) for task in args.tasks for rows in args.rows]
    for engine in engines.values():
        run_prompts(engine, prompts[args.tasks[0]][:1], 16, "warm")
    probes = [measure_limits()]
    rounds: list[Round] = []
    for number in range(args.rounds):
        rounds.append(one_round(engines, cases, prompts, args, number))
        probes.append(measure_limits())
    results = [summary(case, method, rounds) for case in cases for method in engines]
    for result in results:
        print(result)
    finish(
        "speculation",
        best_of(probes),
        {
            "model": engines[PLAIN].model_config.model,
            "output_len": args.output_len,
            "temperature": args.temperature,
            "rounds": args.rounds,
            "results": results,
        },
        args.save,
    )


def load_engines(args: argparse.Namespace) -> dict[str, LLM]:
    """By method; the one without speculation first, another behind the first of several methods."""
    kinds = tuple(_KINDS[method] for method in args.methods if method in _KINDS)
    drafts = (
        make_drafts(args.model, kinds, scale=args.draft_scale)
        if kinds
        else {"target": {"directory": args.model or default_model()}}
    )
    args.model = drafts["target"]["directory"]
    options = engine_options(args, max(args.rows), args.prompt_len + args.output_len)
    engines = {PLAIN: LLM(**options)}
    for number, method in enumerate(args.methods):
        if number == 1:  # not beside the first, whose weights it shares: what that left in the cache would be its gain
            engines[PLAIN_AGAIN] = LLM(**options)
        speculation: dict[str, Any] = {"method": method, **args.spec_args}
        if args.num_speculative_tokens:
            speculation["num_speculative_tokens"] = args.num_speculative_tokens
        if method in _KINDS:
            speculation["model"] = drafts[_KINDS[method]]["directory"]
        engines[method] = LLM(**options, speculative_config=speculation)
    return engines


def one_round(
    engines: dict[str, LLM],
    cases: list[Case],
    prompts: dict[str, list[list[int]]],
    args: argparse.Namespace,
    number: int,
) -> Round:
    """Every case, on all engines side by side. Raises RuntimeError where texts differ."""
    rates: Round = {}
    for case in cases:
        task, rows = case
        num_requests, name = rows * args.requests_per_row, f"{number}-{task}-{rows}"
        runs = [
            SteadyRun(engine, prompts[task], rows, num_requests, args.output_len, name, args.temperature)
            for engine in engines.values()
        ]
        for method, rate in zip(engines, run_side_by_side(runs), strict=True):
            rates[case, method] = rate
            if rate.texts != rates[case, PLAIN].texts:
                raise RuntimeError(f"{method} generated other tokens than plain decoding ({task}, {rows} rows)")
    return rates


def summary(case: Case, method: str, rounds: list[Round]) -> dict[str, Any]:
    columns: dict[str, list[float]] = defaultdict(list)
    for rates in rounds:
        own, plain = rates[case, method], rates[case, PLAIN]
        columns["tokens_per_s"].append(own.tokens_per_s)
        columns["ratio"].append(own.tokens_per_s / plain.tokens_per_s)
        columns["tokens_a_step"].append(own.tokens_a_step)
    medians = {name: round(statistics.median(values), 3) for name, values in columns.items()}
    worst, best = min(columns["ratio"]), max(columns["ratio"])
    return {
        "text": case[0],
        "sequences": case[1],
        "method": method,
        **medians,
        "ratios": [round(worst, 3), round(best, 3)],
    }


if __name__ == "__main__":
    main()
