"""`vllm neuron plan --from-traffic`: the ladder against every other ladder, and each form in which lengths arrive."""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.neuron import CONFIGS, plan
from vllm.entrypoints.cli.main import main
from vllm.plan.traffic import (
    TrafficError,
    best_ladder,
    decode_positions,
    padding_share,
    parse_lines,
    parse_metrics,
)
from vllm.settings.buckets import first_fit


def cost(lengths, ladder):
    return sum(first_fit(length, ladder) * count for length, count in lengths.items())


@settings(max_examples=60)
@given(
    lengths=st.dictionaries(st.integers(1, 24), st.integers(1, 9), min_size=1, max_size=8),
    count=st.integers(1, 4),
    multiple=st.sampled_from([1, 2, 3, 8]),
)
def test_no_other_ladder_pads_less(lengths, count, multiple):
    longest = 24
    ladder = best_ladder(lengths, longest, count, multiple)
    assert ladder == sorted(set(ladder)) and len(ladder) <= count and ladder[-1] == longest
    assert all(bucket % multiple == 0 for bucket in ladder)
    candidates = range(multiple, longest, multiple)
    rivals = [[*choice, longest] for size in range(count) for choice in itertools.combinations(candidates, size)]
    assert cost(lengths, ladder) == min(cost(lengths, rival) for rival in rivals)


def test_a_ladder_by_hand():
    """100 prompts of 100 tokens and one of 900, up to 1024: the first bucket is for the many."""
    lengths = {100: 100, 900: 1}
    assert best_ladder(lengths, 1024, 1) == [1024]
    assert best_ladder(lengths, 1024, 2, multiple=128) == [128, 1024]
    assert best_ladder(lengths, 1024, 3) == [101, 901, 1024]
    assert best_ladder(lengths, 1024, 9) == [101, 901, 1024]
    assert padding_share(lengths, [128, 1024]) == pytest.approx(1 - (100 * 100 + 900) / (100 * 128 + 1024))


def test_decoded_positions():
    """A prompt of 3 and an output of 4: the first token is the prefill's, the others are computed at 3, 4 and 5."""
    assert decode_positions({(3, 4): 2, (5, 2): 1}, 10) == {3: 2, 4: 2, 5: 3}
    assert decode_positions({(3, 100): 1}, 6) == {3: 1, 4: 1, 5: 1}


def test_lines():
    objects = ['{"prompt_tokens": 7, "completion_tokens": 3}', '{"usage": {"prompt_tokens": 9}}']
    traffic = parse_lines(["# lengths", "100", "", "200 20", "200,20", *objects])
    assert traffic.prompts == {100: 1, 200: 2, 7: 1, 9: 1}
    assert traffic.requests == {(200, 20): 2, (7, 3): 1}


@pytest.mark.parametrize(
    "text, place",
    [
        ("12\nmany", "line 2"),
        ("0", "line 1"),
        ("1 2 3", "line 1"),
        ('{"prompt": 3}', "prompt_tokens"),
        ("{", "line 1"),
        ('{"prompt_tokens": "5"}', "line 1"),
        ("# nothing", "no length"),
    ],
)
def test_lines_that_cannot_be_read(text, place):
    with pytest.raises(TrafficError, match=place):
        parse_lines(text.splitlines())


METRICS = """\
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_bucket{model_name="m",le="100.0"} 3.0
vllm:request_prompt_tokens_bucket{model_name="m",le="200.0"} 7.0
vllm:request_prompt_tokens_bucket{model_name="m",le="+Inf"} 8.0
vllm:request_prompt_tokens_sum{model_name="m"} 1000.0
vllm:request_generation_tokens_bucket{model_name="m",le="10.0"} 4.0
vllm:request_generation_tokens_bucket{model_name="m",le="20.0"} 8.0
vllm:request_generation_tokens_bucket{model_name="m",le="+Inf"} 8.0
"""


def test_metrics():
    traffic = parse_metrics(METRICS)
    assert traffic.prompts == {100: 3, 200: 5}
    assert traffic.requests == {(100, 15): 3, (200, 15): 5}
    with pytest.raises(TrafficError, match="no request"):
        parse_metrics("# nothing yet\n")


def test_a_running_servers_metrics(capsys):
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        _, found = plan(capsys, "qwen3-8b", "--max-model-len", "512", "--from-traffic", address)
    finally:
        server.shutdown()
        server.server_close()
    assert [change["count"] for change in found["traffic"]] == [8, 8 * 14]


def test_figures_of_the_command(capsys, tmp_path):
    lengths = tmp_path / "lengths"
    lengths.write_text("300 2\n" * 9 + "600 2\n1500\n")
    words = ("--max-model-len", "1024", "--max-num-seqs", "4", "--from-traffic", str(lengths), "--num-buckets", "3")
    status, found = plan(capsys, "qwen3-8b", *words)
    prefill, decode = found["traffic"]
    assert status == 0
    assert (prefill["count"], prefill["too_long"]) == (10, 1)
    assert prefill["before"] == [128, 256, 512, 1024]
    assert prefill["after"] == [384, 640, 1024]
    assert prefill["padding_before"] == pytest.approx(1 - 3300 / (9 * 512 + 1024))
    assert prefill["padding_after"] == pytest.approx(1 - 3300 / (9 * 384 + 640))
    assert decode["after"] == [384, 640, 1024]
    override = json.dumps({"context_encoding_buckets": prefill["after"]})
    assert plan(capsys, "qwen3-8b", "--max-model-len", "1024", "--override-neuron-config", override)[0] == 0


def test_what_is_printed(capsys, tmp_path):
    lengths = tmp_path / "lengths"
    lengths.write_text("300\n301\n1500\n")
    words = ["neuron", "plan", "--model", str(CONFIGS / "qwen3-8b"), "--max-model-len", "1024"]
    assert main([*words, "--from-traffic", str(lengths)]) == 0
    assert "for 2 prompts, without 1 that are longer than any bucket" in capsys.readouterr().out
    lengths.write_text("300\nmany\n")
    assert main([*words, "--from-traffic", str(lengths)]) == 1
    assert f"{lengths}: line 2: 'many' is neither" in capsys.readouterr().err


def test_a_file_that_is_not_there(capsys):
    model = str(CONFIGS / "qwen3-8b")
    assert main(["neuron", "plan", "--model", model, "--max-model-len", "512", "--from-traffic", "/no/such"]) == 1
    assert "/no/such cannot be read" in capsys.readouterr().err
