"""What each engine is asked when prefix caches are compared."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import compare_prefix_caching
import pytest


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A URL, and the bodies of the completions that were asked for there."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer({"choices": [{"text": "x"}]})

        def answer(self, body: dict) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    listening.server_close()


def test_a_hit_follows_its_beginning_and_a_miss_is_new(server) -> None:
    url, asked = server
    times = compare_prefix_caching.measure({"one": url}, argparse.Namespace(prompt_len=50, rounds=2))
    assert {case: len(values) for case, values in times["one"].items()} == {"hit": 2, "miss": 2}
    assert len(asked) == 9 and {body["max_tokens"] for body in asked} == {1}
    for trunk, hit, miss in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
        assert [len(body["prompt"]) for body in (trunk, hit, miss)] == [45, 50, 50]
        assert hit["prompt"][:45] == trunk["prompt"]
        assert miss["prompt"][0] != trunk["prompt"][0]


def test_the_gain_is_the_median_of_the_gains_within_a_round() -> None:
    times = {"one": {"hit": [1.0, 2.0, 10.0], "miss": [10.0, 10.0, 30.0]}}
    assert compare_prefix_caching.summary(times) == {"one": {"hit_ms": 2.0, "miss_ms": 10.0, "gain": 5.0}}
