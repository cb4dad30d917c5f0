"""The arithmetic of the report, against numbers worked out by hand and against definitions."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.bench.endpoints import CHAT, COMPLETIONS, events, read_stream
from vllm.entrypoints.bench.http_client import Exchange
from vllm.entrypoints.bench.results import METRICS, RequestResult, describe, render, summarise

from .fake_server import DONE, event, text_event, usage_event


def result(**fields: object) -> RequestResult:
    return RequestResult(**{"prompt_len": 10, **fields})  # type: ignore[arg-type]


THREE = [
    result(prompt_len=10, start=0.0, ttft=0.1, e2el=0.5, itl=[0.1, 0.1, 0.2], output_len=5),
    result(prompt_len=20, start=0.2, ttft=0.3, e2el=0.9, itl=[0.3, 0.3], output_len=3),
    result(prompt_len=30, start=0.5, ttft=0.2, e2el=0.2, itl=[], output_len=1),
]
FAILED = result(prompt_len=1000, error="HTTP 500: no")


def test_report_of_three_requests_and_a_failed_one() -> None:
    report = summarise([*THREE, FAILED], 2.0, list(METRICS), [50.0, 99.0], {"ttft": 200, "e2el": 600})
    assert report["completed"] == 3 and report["failed"] == 1
    assert report["total_input_tokens"] == report["total_input"] == 60
    assert report["total_output_tokens"] == report["total_output"] == 9
    assert report["request_throughput"] == 1.5
    assert report["output_throughput"] == 4.5
    assert report["total_token_throughput"] == 34.5
    assert report["request_goodput"] == 1.0  # the second is too late in both
    assert report["max_concurrent_requests"] == 2  # the third starts as the first ends
    assert report["max_output_tokens_per_s"] == 7  # all but the one at 1.1 s
    assert report["mean_ttft_ms"] == pytest.approx(200)
    assert report["median_tpot_ms"] == pytest.approx(statistics.median([100, 300]))
    assert report["mean_itl_ms"] == pytest.approx(200)
    assert report["std_e2el_ms"] == pytest.approx(1000 * statistics.pstdev([0.5, 0.9, 0.2]))
    assert report["p50_e2el_ms"] == pytest.approx(500)
    assert report["p99_e2el_ms"] == pytest.approx(500 + 0.98 * 400)


def test_goodput_is_absent_unless_asked_for_and_bounds_are_inclusive() -> None:
    assert summarise(THREE, 2.0, [], [], {})["request_goodput"] is None
    one = [result(start=0.0, ttft=0.25, e2el=1.25, output_len=5)]  # TPOT 250 ms
    assert summarise(one, 1.0, [], [], {"tpot": 250})["request_goodput"] == 1.0
    assert summarise(one, 1.0, [], [], {"tpot": 249.9})["request_goodput"] == 0.0
    assert summarise([THREE[2]], 1.0, [], [], {"tpot": 0})["request_goodput"] == 1.0  # has no second token


def test_nothing_completed_gives_zeros() -> None:
    report = summarise([FAILED], 1.0, list(METRICS), [99.0], {"ttft": 1})
    assert report["completed"] == 0 and report["failed"] == 1
    assert {value for name, value in report.items() if name.endswith("_ms")} == {0.0}
    assert report["max_concurrent_requests"] == 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_by_their_definition(seconds: list[float], percentile: float) -> None:
    value = describe("ttft", seconds, [percentile])[f"p{percentile:g}_ttft_ms"]
    ordered = sorted(1000 * each for each in seconds)
    rank = percentile / 100 * (len(ordered) - 1)
    below, above = ordered[int(rank)], ordered[min(int(rank) + 1, len(ordered) - 1)]
    assert value == pytest.approx(below + (rank - int(rank)) * (above - below), rel=1e-6, abs=1e-6)


def test_names_of_fractional_percentiles() -> None:
    assert set(describe("itl", [1.0], [99, 99.9])) == {
        "mean_itl_ms", "median_itl_ms", "std_itl_ms", "p99_itl_ms", "p99.9_itl_ms",
    }  # fmt: skip


def test_table_shows_every_number() -> None:
    report = summarise(THREE, 2.0, ["ttft", "itl"], [99.0], {})
    table = render(report, ["ttft", "itl"])
    for line in ("Successful requests: 3", "Output token throughput (tok/s): 4.50", "P99 TTFT (ms): 298.00"):
        assert line in " ".join(table.split())
    assert "E2EL" not in table and "goodput" not in table


# From a stream to a result.


def exchange(*reads: tuple[float, bytes], status: int = 200) -> Exchange:
    return Exchange(10.0, status, list(reads))


def count_words(text: str) -> int:
    return len(text.split())


def test_times_of_a_stream() -> None:
    whole = exchange(
        (10.5, text_event("a")),
        (10.75, text_event("b") + text_event("c")),
        (11.5, text_event("", "length")),
        (12.0, usage_event(7, 4) + DONE),
    )
    read = read_stream(COMPLETIONS, whole, 99, count_words)
    assert read.success and read.text == "abc"
    assert (read.start, read.ttft, read.e2el, read.itl) == (10.0, 0.5, 1.5, [0.25, 0.0])
    assert (read.prompt_len, read.output_len) == (7, 4)
    assert read.tpot == pytest.approx(1 / 3)


def test_the_role_of_a_chat_answer_is_no_first_token() -> None:
    def delta(moment: float, finish: str | None = None, **fields: str) -> tuple[float, bytes]:
        return moment, event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})

    whole = exchange(
        delta(10.1, role="assistant", content=""),
        delta(10.5, reasoning_content="well "),
        delta(11.0, "stop", content="x"),
    )
    read = read_stream(CHAT, whole, 3, count_words)
    assert (read.ttft, read.e2el, read.itl, read.text) == (0.5, 1.0, [0.5], "well x")
    assert (read.prompt_len, read.output_len) == (3, 2), "no usage: the tokenizer counts"


@given(st.integers(1, 40))
def test_events_are_the_same_however_reads_cut_them(size: int) -> None:
    stream = (text_event("ä") + b": ping\n\n" + text_event("b", "stop") + usage_event(1, 2)).replace(
        b"\n\n", b"\r\n\r\n"
    )
    stream += DONE
    pieces = [(float(i), stream[i : i + size]) for i in range(0, len(stream), size)]
    read = read_stream(COMPLETIONS, Exchange(0.0, 200, pieces), 0, count_words)
    assert (read.error, read.text, read.output_len) == ("", "äb", 2)
    assert len(list(events(Exchange(0.0, 200, pieces)))) == 3


@pytest.mark.parametrize(
    ("stream", "status", "message"),
    [
        (b'{"error": {"message": "too long"}}', 400, "HTTP 400: too long"),
        (b"<html>", 502, "HTTP 502: <html>"),
        (b"", 503, "HTTP 503: no body"),
        (text_event("a"), 200, "without a finish_reason"),
        (text_event("a") + event({"error": {"message": "device lost"}}), 200, "device lost"),
        (b"data: {\n\n", 200, "cannot be read"),
        (b"data: [1]\n\n", 200, "cannot be read"),
        (b"", 200, "without a finish_reason"),
    ],
)
def test_failures(stream: bytes, status: int, message: str) -> None:
    read = read_stream(COMPLETIONS, exchange((10.5, stream), status=status), 5, count_words)
    assert not read.success and message in read.error
