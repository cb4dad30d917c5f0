"""Spans of requests, as they arrive at a collector (an HTTP server in this process)."""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import serve
from tests.waiting import wait_until
from vllm import LLM
from vllm.engine.observe.tracing import RequestTracer
from vllm.exceptions import VLLMClientError

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="no OpenTelemetry here: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Collector:
    """spans: those received so far."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = trace_service.ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_spans_of_a_server(tiny_llama: Path, collector: Collector) -> None:
    words = ("--max-model-len", "256", "--max-num-seqs", "4", "--otlp-traces-endpoint", collector.url)
    env = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "VLLM_NULL_STEP_MS": "10"}
    with serve(tiny_llama, *words, env=env) as server:
        url = f"{server.url}/v1/completions"
        ask = {"prompt": "a b c", "max_tokens": 7, "ignore_eos": True, "temperature": 0.5}
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        plain = httpx.post(url, json=ask, headers=headers).json()
        httpx.post(url, json={**ask, "stream": True, "n": 2, "max_tokens": 5})
        assert httpx.post(url, json={**ask, "max_tokens": -1}).status_code == 400
        with httpx.stream("POST", url, json={**ask, "stream": True, "max_tokens": 200}) as response:
            next(response.iter_lines())
        wait_until(server.is_idle)
        assert server.stop() == 0, "what is left is sent at the end"
    named, several, left = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert named.name == "llm_request" and named.trace_id.hex() == TRACE_ID and named.parent_span_id.hex() == PARENT_ID
    told = attributes(named)
    assert told["gen_ai.usage.prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.completion_tokens"] == 7 and told["gen_ai.request.max_tokens"] == 7
    assert told["gen_ai.response.model"] == "test-model" and told["gen_ai.request.temperature"] == 0.5
    assert 0 < told["gen_ai.latency.time_to_first_token"] <= told["gen_ai.latency.e2e"]
    parts = told["gen_ai.latency.time_in_model_prefill"] + told["gen_ai.latency.time_in_model_decode"]
    assert parts == pytest.approx(told["gen_ai.latency.time_in_model_inference"])
    assert (named.end_time_unix_nano - named.start_time_unix_nano) / 1e9 >= told["gen_ai.latency.time_to_first_token"]
    assert several.trace_id.hex() != TRACE_ID and not several.parent_span_id
    assert attributes(several)["gen_ai.usage.completion_tokens"] == 10
    (reason,) = attributes(left)["gen_ai.response.finish_reasons"].values
    assert reason.string_value == "abort"


def test_collector_that_is_away_costs_no_request(tiny_llama: Path) -> None:
    words = ("--max-model-len", "256", "--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces")
    with serve(tiny_llama, *words, env={"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}) as server:
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-grpc"):
        RequestTracer("collector:4317", "model")


def test_offline_engines_refuse_it(tiny_llama: Path) -> None:
    with pytest.raises(VLLMClientError, match="otlp_traces_endpoint"):
        LLM(str(tiny_llama), device="null", max_model_len=64, otlp_traces_endpoint="http://x")
