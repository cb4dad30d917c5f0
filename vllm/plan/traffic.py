"""Bucket ladders from what is really asked: the ladder of k buckets with the least padding, by dynamic programming.

Lengths come from a file, one request a line: `PROMPT` or `PROMPT OUTPUT` as numbers, or a JSON object with
`prompt_tokens` and maybe `completion_tokens`; or from a running server's /metrics, whose histograms give each request
the upper bound of its bin. A prompt of n tokens is padded to its bucket. An output of m tokens after it is computed at
positions n to n+m-2, each of which reads a bucket of context; rows of a batch are taken one by one.
"""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vllm.settings.buckets import first_fit
from vllm.sizes import MIB

_PROMPT_NAMES = ("prompt_tokens", "prompt_len", "input_tokens", "input_len")
_OUTPUT_NAMES = ("completion_tokens", "output_tokens", "output_len", "generation_tokens")
_PROMPT_METRIC, _OUTPUT_METRIC = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
DEFAULT_MULTIPLE = 128
_MOST_BYTES = 64 * MIB


class TrafficError(ValueError):
    """Lengths that cannot be read, with the line at fault."""


@dataclass(slots=True)
class Traffic:
    """prompts: requests by prompt length. requests: by (prompt, output) length where outputs are known."""

    prompts: Counter[int] = field(default_factory=Counter)
    requests: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, prompt: int, output: int = 0, count: int = 1) -> None:
        self.prompts[prompt] += count
        if output > 1:
            self.requests[prompt, output] += count


@dataclass(frozen=True, slots=True)
class LadderChange:
    """A ladder now and as proposed. padding: share of compiled tokens that would be padding. count: of `what`."""

    key: str
    what: str
    count: int
    before: list[int]
    after: list[int]
    padding_before: float
    padding_after: float
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "count": self.count,
            "too_long": self.left_out,
            "before": self.before,
            "after": self.after,
            "padding_before": self.padding_before,
            "padding_after": self.padding_after,
        }


def read_traffic(where: str) -> Traffic:
    """Lengths from a file, or from the metrics at an http address. Raises TrafficError."""
    if where.startswith(("http://", "https://")):
        return parse_metrics(_fetched(where))
    path = Path(where).expanduser()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TrafficError(f"{path} cannot be read: {error}") from None
    try:
        return parse_lines(text.splitlines())
    except TrafficError as error:
        raise TrafficError(f"{path}: {error}") from None


def _fetched(address: str) -> str:
    if not address.rstrip("/").endswith("/metrics"):
        address = address.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read(_MOST_BYTES).decode())
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise TrafficError(f"{address} cannot be read: {getattr(error, 'reason', error)}") from None


def parse_lines(lines: Iterable[str]) -> Traffic:
    """One request a line; empty lines and those that begin with # are skipped."""
    traffic = Traffic()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        prompt, output = _parse_line(text, number)
        if prompt < 1 or output < 0:
            raise TrafficError(f"line {number}: {text[:60]!r} has a length that cannot be")
        traffic.add(prompt, output)
    if not traffic.prompts:
        raise TrafficError("there is no length in it")
    return traffic


def _parse_line(text: str, number: int) -> tuple[int, int]:
    if text.startswith("{"):
        return _parse_object(text, number)
    words = re.split(r"[\s,;]+", text)
    try:
        prompt, output = (int(words[0]), int(words[1]) if len(words) > 1 else 0)
    except ValueError:
        raise TrafficError(f"line {number}: {text[:60]!r} is neither lengths nor a JSON object") from None
    if len(words) > 2:
        raise TrafficError(f"line {number}: {text[:60]!r} has more than a prompt's and an output's length")
    return prompt, output


def _parse_object(text: str, number: int) -> tuple[int, int]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrafficError(f"line {number} is not JSON: {error}") from None
    if isinstance(entry.get("usage"), dict):
        entry = entry["usage"]
    prompt = next((entry[name] for name in _PROMPT_NAMES if name in entry), None)
    output = next((entry[name] for name in _OUTPUT_NAMES if name in entry), 0)
    if type(prompt) is not int or type(output) is not int:
        raise TrafficError(f"line {number}: expected numbers under {_PROMPT_NAMES[0]!r} and maybe {_OUTPUT_NAMES[0]!r}")
    return prompt, output


def parse_metrics(text: str) -> Traffic:
    """The histograms of prompts and outputs; they are not joint, so outputs are spread over prompts by their mean."""
    prompts, outputs = _histogram(text, _PROMPT_METRIC), _histogram(text, _OUTPUT_METRIC)
    if not prompts:
        raise TrafficError(f"the metrics hold no request yet ({_PROMPT_METRIC}_bucket)")
    traffic = Traffic()
    total = sum(outputs.values())
    mean = round(sum(length * count for length, count in outputs.items()) / total) if total else 0
    for prompt, count in prompts.items():
        traffic.add(prompt, mean, count)
    return traffic


def _histogram(text: str, name: str) -> dict[int, int]:
    """Requests by the upper bound of their bin; those beyond the last bound count as that bound."""
    cumulative: Counter[float] = Counter()
    for labels, value in re.findall(rf"^{re.escape(name)}_bucket{{([^}}]*)}} (\S+)", text, re.MULTILINE):
        bound = re.search(r'le="([^"]+)"', labels)
        if bound:
            cumulative[math.inf if bound[1] == "+Inf" else float(bound[1])] += int(float(value))
    found: dict[int, int] = {}
    below, last = 0, 1
    for limit in sorted(cumulative):
        last = last if math.isinf(limit) else max(1, int(limit))
        if count := cumulative[limit] - below:
            found[last] = found.get(last, 0) + count
        below = cumulative[limit]
    return found


def ladder_changes(
    traffic: Traffic, config: Any, num_buckets: int | None = None, multiple: int = DEFAULT_MULTIPLE
) -> list[LadderChange]:
    """Proposed ladders of context encoding, and of token generation where outputs are known."""
    if num_buckets is not None and num_buckets < 1:
        raise TrafficError(f"--num-buckets {num_buckets} leaves no bucket; use 1 or more")
    if multiple < 1:
        raise TrafficError(f"--bucket-multiple {multiple} cannot be; use 1 or more, such as 128")
    changes = [
        _change("context_encoding_buckets", "prompts", traffic.prompts, config.context_buckets, num_buckets, multiple)
    ]
    if traffic.requests:
        positions = decode_positions(traffic.requests, config.max_length)
        changes.append(
            _change(
                "token_generation_buckets", "decoded tokens", positions, config.token_buckets, num_buckets, multiple
            )
        )
    return changes


def decode_positions(requests: Mapping[tuple[int, int], int], max_length: int) -> dict[int, int]:
    """Decoded tokens by position. The first output token comes from the prefill, the last is never read back."""
    edges = np.zeros(max_length + 1, np.int64)
    for (prompt, output), count in requests.items():
        begin, end = min(prompt, max_length), min(prompt + output - 1, max_length)
        edges[begin] += count
        edges[end] -= count
    counts = np.cumsum(edges)[:max_length]
    return {int(position): int(counts[position]) for position in np.flatnonzero(counts)}


def _change(
    key: str, what: str, lengths: Mapping[int, int], before: list[int], num_buckets: int | None, multiple: int
) -> LadderChange:
    longest = before[-1]
    served = {length: count for length, count in lengths.items() if length <= longest}
    left_out = sum(lengths.values()) - sum(served.values())
    after = best_ladder(served, longest, num_buckets or len(before), multiple)
    return LadderChange(
        key,
        what,
        sum(served.values()),
        list(before),
        after,
        padding_share(served, before),
        padding_share(served, after),
        left_out,
    )


def padding_share(lengths: Mapping[int, int], ladder: Sequence[int]) -> float:
    """Share of the compiled tokens that are padding when `lengths` run in `ladder`, 0 to 1."""
    computed = sum(first_fit(length, ladder) * count for length, count in lengths.items())
    return 1 - sum(length * count for length, count in lengths.items()) / computed if computed else 0.0


def best_ladder(lengths: Mapping[int, int], longest: int, num_buckets: int, multiple: int = 1) -> list[int]:
    """The ladder up to `longest` of at most `num_buckets` multiples of `multiple` that pads `lengths` least.

    A length runs in the first bucket greater than itself, and `longest` serves its own. Of ladders with equal padding
    the shortest. A ladder is a choice of candidates, the least bucket that each length could run in: the least padding
    of j buckets the last of which is candidate e is that of j-1 buckets up to some candidate s < e, plus what lies
    between costs in e.
    """
    needed: Counter[int] = Counter()
    for length, count in lengths.items():
        needed[min(longest, (length // multiple + 1) * multiple)] += count
    candidates = np.array(sorted({*needed, longest}), np.int64)
    weights = np.array([needed[int(candidate)] for candidate in candidates], np.int64)
    below = np.concatenate([[0], np.cumsum(weights)])
    size = len(candidates)
    # costs[s, e]: candidates s..e in bucket e.
    costs = (below[1:][None, :] - below[:-1][:, None]).astype(np.float64) * candidates[None, :]
    costs[np.tril_indices(size, -1)] = np.inf
    best = costs[0].copy()
    choices: list[Any] = [np.zeros(size, np.int64)]
    totals = [best[-1]]
    for _ in range(1, min(num_buckets, size)):
        through = np.full((size, size), np.inf)
        through[1:] = best[:-1, None] + costs[1:]
        choices.append(through.argmin(axis=0))
        best = through.min(axis=0)
        totals.append(best[-1])
    return _traced(candidates, choices[: int(np.argmin(totals)) + 1])


def _traced(candidates: Any, choices: list[Any]) -> list[int]:
    ladder, end = [], len(candidates) - 1
    for starts in reversed(choices):
        ladder.append(int(candidates[end]))
        end = int(starts[end]) - 1
    return ladder[::-1]
