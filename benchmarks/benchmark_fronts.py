"""What HTTP costs with one process for it and with several (`--api-server-count`), on the target that computes nothing.

    python benchmarks/benchmark_fronts.py [--fronts 1 2] [--streams 256] [--save]

Ends in one JSON line: tokens a second, and seconds of processor time of the fronts, of their owner, and of the engine,
its client's warm-up included. The client runs on the same machine: where all together want more processors than there
are, tokens a second say how those were shared out, and processor time is what counts.
"""

from __future__ import annotations

import psutil
from benchmark_serving import drive, serving
from machine import finish, measure_limits
from options import engine_options, make_parser

ROLES = {"front": "vllm.entrypoints.openai.fronts.front", "engine": "vllm.engine.processes.core_proc", "owner": "serve"}


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(device="null")
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2], help="How many processes answer HTTP.")
    parser.add_argument("--streams", type=int, default=256, help="Requests at once.")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="Requests of each stream.")
    args = parser.parse_args()
    limits, results = measure_limits(), []
    for count in args.fronts:
        options = engine_options(args, args.streams, args.input_len + args.output_len)
        with serving({**options, "api_server_count": count}) as url:
            before = processor_seconds()
            report = drive(url, args.streams, args.input_len, args.output_len, args.streams * args.rounds)
            after = processor_seconds()
        results.append({"fronts": count, **report, **{role: round(after[role] - before[role], 2) for role in after}})
        print(results[-1])
    finish("fronts", limits, {"model": options["model"], "results": results}, args.save)


def processor_seconds() -> dict[str, float]:
    """Of the server's processes so far, by role. One front alone is its own owner, and counted as a front."""
    totals: dict[str, float] = dict.fromkeys(ROLES, 0.0)
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        for role, word in ROLES.items():
            if word in words:
                times = process.cpu_times()
                totals[role] += times.user + times.system
    if not totals["front"]:
        totals["front"], totals["owner"] = totals["owner"], 0.0
    return totals


if __name__ == "__main__":
    main()
