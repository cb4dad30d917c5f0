"""From what happened to each request to the numbers that are reported, under vLLM's names.

Of a request that succeeded: TTFT, from sending it to the first text; E2EL, from sending it to its end;
TPOT = (E2EL - TTFT) / (tokens - 1), for those of at least two tokens; ITL, the gaps between pieces of text.
Percentiles are interpolated linearly between the two nearest values. Times are seconds, milliseconds in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
"""Name -> short and long title."""


@dataclass(slots=True)
class RequestResult:
    """What became of a request. start: by the clock of the run. waited: before that, for others to end.

    error: empty if it succeeded.
    """

    prompt_len: int
    start: float = 0.0
    ttft: float = 0.0
    e2el: float = 0.0
    itl: list[float] = field(default_factory=list)
    output_len: int = 0
    waited: float = 0.0
    text: str = ""
    error: str = ""

    @property
    def success(self) -> bool:
        return not self.error

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; None where there is none."""
        return (self.e2el - self.ttft) / (self.output_len - 1) if self.output_len > 1 else None

    def meets(self, goals: Mapping[str, float]) -> bool:
        """Whether no time is above its goal in milliseconds. A time that the request does not have is 0."""
        return all((getattr(self, name) or 0.0) * 1000 <= goal for name, goal in goals.items())


def summarise(
    results: Sequence[RequestResult],
    duration: float,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """The report. metrics: those of METRICS to report; goodput: milliseconds by metric, empty for none.

    rtfx, vLLM's rate of audio, is 0: nothing is heard here.
    """
    good = [result for result in results if result.success]
    total_input = sum(result.prompt_len for result in good)
    total_output = sum(result.output_len for result in good)
    report: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(results) - len(good),
        "total_input": total_input,
        "total_output": total_output,
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": len(good) / duration,
        "request_goodput": sum(result.meets(goodput) for result in good) / duration if goodput else None,
        "output_throughput": total_output / duration,
        "total_token_throughput": (total_input + total_output) / duration,
        "max_output_tokens_per_s": _busiest_second(good),
        "max_concurrent_requests": _most_at_once(good),
        "rtfx": 0.0,
    }
    for name in metrics:
        report |= describe(name, times_of(name, good), percentiles)
    return report


def times_of(metric: str, results: Sequence[RequestResult]) -> list[float]:
    """All times of a metric, in seconds."""
    if metric == "itl":
        return [gap for result in results for gap in result.itl]
    return [time for result in results if (time := getattr(result, metric)) is not None]


def describe(metric: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """mean, median, std and percentiles in milliseconds, by name of the result; 0 where there is nothing."""
    times = np.asarray(seconds or [0.0]) * 1000
    named = {
        f"mean_{metric}_ms": times.mean(),
        f"median_{metric}_ms": np.median(times),
        f"std_{metric}_ms": times.std(),
    }
    named |= {f"p{p:g}_{metric}_ms": np.percentile(times, p) for p in percentiles}
    return {name: float(value) for name, value in named.items()}


def _busiest_second(results: Sequence[RequestResult]) -> float:
    """Most pieces of text in one second, counted in whole seconds from the first start."""
    if not results:
        return 0.0
    origin = min(result.start for result in results)
    moments = [
        moment - origin for result in results for moment in accumulate(result.itl, initial=result.start + result.ttft)
    ]
    return float(np.bincount(np.asarray(moments, np.int64)).max())


def _most_at_once(results: Sequence[RequestResult]) -> int:
    """Most requests that were under way at one moment. One that ends as another starts does not overlap it."""
    changes = sorted(change for result in results for change in ((result.start, 1), (result.start + result.e2el, -1)))
    return max(accumulate((change for _, change in changes), initial=0))


def render(report: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The report as a table of lines."""
    lines = [f"{' Serving Benchmark Result ':=^50}"]
    for label, key in _LABELS:
        if report.get(key) is not None:
            value = report[key]
            lines.append(f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}")
    for metric in metrics:
        short, long = METRICS[metric]
        lines.append(f"{long:-^50}")
        for key, value in report.items():
            kind, _, rest = key.partition("_")
            if rest == f"{metric}_ms":
                lines.append(f"{f'{kind.capitalize()} {short} (ms):':<40} {value:<10.2f}")
    return "\n".join([*lines, "=" * 50])


_LABELS = [
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
    ("Peak concurrent requests:", "max_concurrent_requests"),
    ("Total token throughput (tok/s):", "total_token_throughput"),
    ("Acceptance rate (%):", "spec_decode_acceptance_rate"),
    ("Acceptance length:", "spec_decode_acceptance_length"),
]
