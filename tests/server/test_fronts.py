"""Several processes that answer HTTP before one engine: whichever of them is asked, it is one server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.server.fronts import Fronts, is_alive, serve_fronts, sum_of
from tests.server.process import serve
from tests.waiting import PATIENCE, wait_until

MODEL = "test-model"
SMALL = ("--max-model-len", "512", "--max-num-seqs", "4")
SLOW = {"VLLM_NULL_STEP_MS": "10"}
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 240, "ignore_eos": True}
ENDLESS = {"max_tokens": 500}
"""More than a stream gets to before its test ends it, at 10 ms per token."""
STORING = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
NUM_FRONTS, ROWS = 3, 8


@pytest.fixture(scope="module")
def fronts(tiny_llama: Path) -> Iterator[Fronts]:
    words = ("--max-model-len", "256", "--max-num-seqs", str(ROWS))
    env = {**STORING, "VLLM_LOG_STATS_INTERVAL": "0.2"}
    with serve_fronts(tiny_llama, NUM_FRONTS, *words, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tiny_llama: Path) -> Iterator[Fronts]:
    words = (*SMALL, "--max-num-queued-reqs", "2", "--shutdown-timeout", "30")
    with serve_fronts(tiny_llama, 2, *words, env={**SLOW, **STORING}) as running:
        yield running


@contextlib.contextmanager
def streaming(client: httpx.Client, **fields: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a long stream, which has begun."""
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True, **fields}) as response:
        events = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        first = next(events)
        yield itertools.chain([first], events)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields})


class TestOneServer:
    async def test_texts_of_many_streams_equal_solo_runs(self, fronts: Fronts) -> None:
        """256 at once over eight rows, all with the same id."""
        asked = [{"prompt": f"text {i}", "max_tokens": 24, "seed": i} for i in range(16)]
        solo = [ask(fronts.clients[0], **fields).json()["choices"][0]["text"] for fields in asked]
        headers = {"X-Request-Id": "the same"}
        async with openai.AsyncOpenAI(
            base_url=f"{fronts.server.url}/v1", api_key="none", max_retries=0, default_headers=headers,
            http_client=httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=PATIENCE),
        ) as client:  # fmt: skip

            async def text_of(fields: dict[str, Any]) -> str:
                stream = await client.completions.create(model=MODEL, stream=True, **fields)
                return "".join([chunk.choices[0].text async for chunk in stream])

            texts = await asyncio.gather(*(text_of(fields) for fields in asked * 16))
            connections = fronts.num_connections()
        assert texts == solo * 16
        assert sum(count > 1 for count in connections) > 1, "more than one front took part"

    def test_metrics_are_the_total_whoever_is_asked(self, fronts: Fronts) -> None:
        wait_until(fronts.is_idle)
        names = ("generation_tokens_total", "prompt_tokens_total", "request_success_total",
                 "e2e_request_latency_seconds_count", "time_to_first_token_seconds_count")  # fmt: skip
        before = [fronts.metric(f"vllm:{name}") for name in names]
        for i in range(9):
            ask(fronts.clients[i % NUM_FRONTS], prompt=[5, 6, 7], max_tokens=10, ignore_eos=True)
        for i in range(2 * NUM_FRONTS):
            now = [fronts.metric(f"vllm:{name}", i % NUM_FRONTS) for name in names]
            assert [new - old for new, old in zip(now, before, strict=True)] == [90, 27, 9, 9, 9]
        wait_until(fronts.is_idle)
        data = [client.get("/dashboard/data").json() for client in fronts.clients]
        assert len({each["counters"]["generation_tokens"] for each in data}) == 1
        assert [each["rows"] for each in data] == [{"used": 0, "total": ROWS}] * NUM_FRONTS
        assert data[0]["buckets"] == data[1]["buckets"] == data[2]["buckets"] != []

    def test_gauges_and_the_process_are_those_of_the_server(self, fronts: Fronts) -> None:
        text = [client.get("/metrics").text for client in fronts.clients]
        for name, value in (("num_slots", ROWS), ("engine_ready", 1), ("engine_restarts_total", 0)):
            told = [[line for line in each.splitlines() if line.startswith(f"vllm:{name}")] for each in text]
            assert [len(lines) for lines in told] == [1] * NUM_FRONTS and "pid=" not in told[0][0]
            assert {float(lines[0].rpartition(" ")[2]) for lines in told} == {value}
        resident = sum(process.memory_info().rss for process in fronts.processes)
        assert fronts.metric("process_resident_memory_bytes") == pytest.approx(resident, rel=0.05)

    def test_counters_never_go_backwards(self, fronts: Fronts) -> None:
        names = ("vllm:generation_tokens_total", "vllm:iteration_tokens_total_count", "http_requests_total")

        def load(front: int) -> None:
            for _ in range(10):
                ask(fronts.clients[front], max_tokens=60, ignore_eos=True)

        threads = [threading.Thread(target=load, args=(front,)) for front in range(NUM_FRONTS)]
        for thread in threads:
            thread.start()
        seen = [0.0] * len(names)
        with contextlib.ExitStack() as stack:
            scrapers = [stack.enter_context(contextlib.closing(fronts.connect(front))) for front in range(NUM_FRONTS)]
            for scraper in itertools.cycle(scrapers):
                now = [sum_of(scraper.get("/metrics").text, name) for name in names]
                assert all(new >= old for new, old in zip(now, seen, strict=True))
                seen = now
                if not any(thread.is_alive() for thread in threads):
                    break
        assert all(seen)

    def test_statistics_are_logged_once_for_all(self, fronts: Fronts) -> None:
        wait_until(fronts.is_idle)
        begun = len(fronts.server.log)

        def told() -> list[float]:
            """Tokens per second in the lines of statistics so far."""
            lines = [line for line in fronts.server.log[begun:] if "generation" in line]
            return [float(line.partition("generation ")[2].split()[0]) for line in lines]

        def counted() -> bool:
            for client in fronts.clients[1:]:
                ask(client, max_tokens=50, ignore_eos=True)
            ask(fronts.clients[0])
            return any(told())

        wait_until(counted)
        assert len(told()) < len(fronts.clients) * 2, "one of them tells for all"

    def test_constraints_hold_on_every_front(self, fronts: Fronts) -> None:
        for client in fronts.clients:
            answer = ask(client, max_tokens=20, structured_outputs={"choice": ["yes", "no"]})
            assert answer.json()["choices"][0]["text"] in ("yes", "no")

    def test_responses_are_kept_for_all(self, fronts: Fronts) -> None:
        first, second, third = (fronts.openai(index) for index in range(NUM_FRONTS))
        one = first.responses.create(model=MODEL, input="a", max_output_tokens=4)
        two = second.responses.create(model=MODEL, input="b", max_output_tokens=4, previous_response_id=one.id)
        assert two.usage and one.usage and two.usage.input_tokens > one.usage.input_tokens
        assert third.responses.retrieve(two.id).output_text == two.output_text
        third.responses.delete(one.id)
        for client in (first, second):
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(one.id)

    def test_engine_calls_reach_it_from_everywhere(self, fronts: Fronts) -> None:
        assert [client.get("/health").status_code for client in fronts.clients] == [200] * NUM_FRONTS
        assert len({client.get("/v1/models").json()["data"][0]["id"] for client in fronts.clients}) == 1


class TestSlow:
    def test_clients_that_leave_free_their_rows(self, slow: Fronts) -> None:
        for client in slow.clients:
            with httpx.Client(base_url=slow.server.url) as other, streaming(other):
                wait_until(lambda: slow.num_running() == 1)
                assert [client.get("/load").json() for client in slow.clients] == [{"server_load": 1}] * 2
            wait_until(slow.is_idle)
        wait_until(lambda: slow.clients[1].get("/load").json() == {"server_load": 0})

    def test_bound_of_the_queue_holds_over_all(self, slow: Fronts) -> None:
        """Thirty at once: four run, two wait, whichever front they came to."""
        wait_until(slow.is_idle)
        before = slow.metric("vllm:admission_rejections_total")
        url, body = f"{slow.server.url}/v1/completions", {**LONG, **ENDLESS}
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            asked = [pool.submit(httpx.post, url, json=body, timeout=PATIENCE) for _ in range(30)]
            statuses = [answer.result().status_code for answer in asked]
        assert sorted(statuses) == [200] * 6 + [429] * 24
        assert [slow.metric("vllm:admission_rejections_total", front) - before for front in (0, 1)] == [24, 24]
        assert all(ask(client).status_code == 200 for client in slow.clients)

    def test_response_in_the_background_is_everybodys(self, slow: Fronts) -> None:
        here, there = slow.openai(0), slow.openai(1)
        asked: dict[str, Any] = {"model": MODEL, "input": "a", "max_output_tokens": 200, "background": True}
        begun = here.responses.create(**asked, extra_body={"ignore_eos": True})
        assert there.responses.retrieve(begun.id).status == "in_progress"
        assert there.responses.cancel(begun.id).status == "cancelled"
        assert here.responses.retrieve(begun.id).status == "cancelled"
        wait_until(slow.is_idle)
        doomed = there.responses.create(**asked, extra_body={"ignore_eos": True})
        here.responses.delete(doomed.id)
        with pytest.raises(openai.NotFoundError):
            there.responses.retrieve(doomed.id)
        wait_until(slow.is_idle)
        ended = here.responses.create(**{**asked, "max_output_tokens": 1})
        wait_until(lambda: there.responses.retrieve(ended.id).status == "incomplete")
        assert there.responses.cancel(ended.id).status == "incomplete"

    def test_running_streams_of_every_front_finish_at_sigterm(self, slow: Fronts) -> None:
        """The last one here: it ends the server."""
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(httpx.Client(base_url=slow.server.url)) for _ in range(4)]
            streams = [stack.enter_context(streaming(client, seed=1)) for client in slow.clients]
            assert [client.get("/health").status_code for client in others] == [200] * 4
            slow.server.process.send_signal(signal.SIGTERM)
            for process in slow.processes:
                process.send_signal(signal.SIGTERM)  # as a service manager does to a whole group
            wait_until(lambda: others[0].get("/health").status_code == 503)
            assert [client.get("/health").status_code for client in others] == [503] * 4
            assert ask(others[1]).status_code == 503
            texts = ["".join(event["choices"][0]["text"] for event in stream) for stream in streams]
            assert texts[0] == texts[1] and texts[0]
        assert slow.server.process.wait(PATIENCE) == 0


def test_second_signal_ends_the_wait(tiny_llama: Path) -> None:
    with (
        serve_fronts(tiny_llama, 2, *SMALL, "--shutdown-timeout", "30", env=SLOW) as fronts,
        contextlib.ExitStack() as stack,
    ):
        others = [stack.enter_context(contextlib.closing(fronts.connect(front))) for front in (0, 1)]
        streams = [stack.enter_context(streaming(client, **ENDLESS)) for client in fronts.clients]
        fronts.server.process.send_signal(signal.SIGINT)
        for other in others:
            wait_until(lambda: other.get("/health").status_code == 503)  # noqa: B023
        fronts.server.process.send_signal(signal.SIGINT)
        assert all(list(stream)[-1]["error"]["code"] == 503 for stream in streams)
        assert fronts.server.process.wait(PATIENCE) == 0


def test_engine_that_is_killed_is_replaced_for_all(tiny_llama: Path) -> None:
    with serve_fronts(tiny_llama, 2, *SMALL, "--max-engine-restarts", "1", env=SLOW) as fronts:
        server, text = fronts.server, ask(fronts.clients[0], seed=1).json()["choices"][0]["text"]
        for restart in (1, 2):
            with contextlib.ExitStack() as stack:
                streams = [stack.enter_context(streaming(client, **ENDLESS)) for client in fronts.clients]
                server.engine.kill()
                assert all(list(stream)[-1]["error"]["code"] == 503 for stream in streams)
            if restart == 2:
                break
            wait_until(lambda: all(client.get("/health").status_code == 200 for client in fronts.clients))
            assert [ask(client, seed=1).json()["choices"][0]["text"] for client in fronts.clients] == [text] * 2
            assert [fronts.metric("vllm:engine_restarts_total", front) for front in (0, 1)] == [1, 1]
            wait_until(fronts.is_idle)
        assert server.process.wait(PATIENCE) == 1
        assert sum("is started anew (1 of 1)" in line for line in server.log) == 1


def test_front_that_is_killed_ends_the_server_when_the_others_have_drained(tiny_llama: Path) -> None:
    with (
        serve_fronts(tiny_llama, 2, *SMALL, "--shutdown-timeout", "30", env=SLOW) as fronts,
        contextlib.ExitStack() as stack,
    ):
        usage = {"stream_options": {"include_usage": True}}
        doomed, spared = (stack.enter_context(streaming(client, **usage)) for client in fronts.clients)
        other = stack.enter_context(contextlib.closing(fronts.connect(1)))
        fronts.processes[0].kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(doomed)
        wait_until(lambda: other.get("/health").status_code == 503)
        wait_until(lambda: other.get("/load").json() == {"server_load": 1})
        assert "vllm:num_requests_running" in other.get("/metrics").text
        assert list(spared)[-1]["usage"]["completion_tokens"] == LONG["max_tokens"], "it lost nothing"
        assert fronts.server.process.wait(PATIENCE) == 1
        assert sum("was killed by signal 9: the server ends" in line for line in fronts.server.log) == 1


def test_front_that_hangs_ends_the_server_as_one_that_died(tiny_llama: Path) -> None:
    env = {**SLOW, "VLLM_FRONT_TIMEOUT_SECONDS": "1"}
    with serve_fronts(tiny_llama, 2, *SMALL, "--shutdown-timeout", "30", env=env) as fronts:
        fronts.processes[0].send_signal(signal.SIGSTOP)
        with streaming(fronts.clients[1], stream_options={"include_usage": True}) as spared:
            assert list(spared)[-1]["usage"]["completion_tokens"] == LONG["max_tokens"], "it lost nothing"
        assert fronts.server.process.wait(PATIENCE) == 1
        assert sum("front 1 of 2 showed no life" in line for line in fronts.server.log) == 1


def test_no_process_outlives_the_owner(tiny_llama: Path, tmp_path: Path) -> None:
    """On a Unix socket. What is left of it is its directory."""
    path = tmp_path / "server.sock"
    words = (*SMALL, "--api-server-count", "2", "--uds", str(path))
    with (
        tempfile.TemporaryDirectory() as directory,
        serve(tiny_llama, *words, module="vllm.entrypoints.cli.main", env={"VLLM_RPC_BASE_PATH": directory}) as server,
    ):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
            assert ask(client).json()["usage"]["completion_tokens"] == 2
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 3
        server.process.kill()
        wait_until(lambda: not any(map(is_alive, children)))


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["--model", "/no/such/model"], {}, "/no/such/model"),
        (["--middleware", "no.such.thing"], {}, "no.such.thing"),
        ([], {"NEURON_COMPILED_ARTIFACTS": "/proc/nowhere", "VLLM_CACHE_ROOT": "/proc/nowhere"}, "/proc/nowhere"),
        (
            ["--otlp-traces-endpoint", "http://127.0.0.1:9"],
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "carrier-pigeon"},
            "pigeon",
        ),
    ],
    ids=["owner", "both", "core", "front"],
)
def test_start_that_fails_says_why_once(tiny_llama: Path, words: list[str], env: dict[str, str], message: str) -> None:
    words = [*SMALL, "--api-server-count", "2", *words]
    with pytest.raises(AssertionError, match="did not start") as caught, serve(tiny_llama, *words, env=env):
        pass
    told = str(caught.value).splitlines()
    (line,) = (line for line in told if "cannot start" in line)
    assert message in line
    assert message in env.values() or not [line for line in told if "Traceback" in line]


def test_signal_ends_a_start(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, "--api-server-count", "2", starting=True) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert not [line for line in server.log if "Traceback" in line]
