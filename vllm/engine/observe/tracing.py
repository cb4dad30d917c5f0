"""Traces: one span a request, sent to an OpenTelemetry collector (`--otlp-traces-endpoint`).

The span `llm_request` lies from the request's arrival to its end, in the trace that the client named (W3C headers
`traceparent`, `tracestate`) or in one of its own. Attributes have the names of OpenTelemetry's conventions for
generative AI, and of vLLM. The SDK gathers and sends in a thread of its own; a collector that is away costs spans,
never requests.

The packages are optional: without them the option is refused when the engine is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from vllm import envs
from vllm.outputs import RequestOutput, RequestStateStats
from vllm.sampling_params import RequestOutputKind, SamplingParams

TRACE_HEADERS = ("traceparent", "tracestate")
CURRENT_TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("trace_headers", default=None)
"""The trace headers of the HTTP request that is being answered."""

_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


class RequestTracer:
    """Makes a span of each request that ended. `close` sends what is left."""

    def __init__(self, endpoint: str, model: str) -> None:
        """endpoint: with http/protobuf the whole URL (http://collector:4318/v1/traces), with grpc host and port.

        Raises ValueError where the packages are missing.
        """
        protocol = envs.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
        try:
            import importlib

            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            exporter = importlib.import_module(_EXPORTERS[protocol]).OTLPSpanExporter(endpoint=endpoint)
        except ImportError as error:
            package = f"opentelemetry-exporter-otlp-proto-{protocol.partition('/')[0]}"
            raise ValueError(
                f"--otlp-traces-endpoint needs packages that are not installed ({error.name}): "
                f"pip install opentelemetry-sdk {package}"
            ) from None
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({"service.name": "vllm"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vllm.request")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def begin(
        self, request_id: str, params: SamplingParams, trace_headers: Mapping[str, str] | None = None
    ) -> RequestTrace:
        """A request arrived now. trace_headers: by default those of the HTTP request that is being answered."""
        headers = trace_headers or CURRENT_TRACE.get()
        context = self._propagator.extract(dict(headers)) if headers else None
        span = self._tracer.start_span("llm_request", context, self._kind)
        span.set_attributes(
            {
                "gen_ai.request.id": request_id,
                "gen_ai.response.model": self._model,
                "gen_ai.request.n": params.n,
                "gen_ai.request.temperature": params.temperature,
                "gen_ai.request.top_p": params.top_p,
                "gen_ai.request.max_tokens": params.max_tokens or 0,
            }
        )
        return RequestTrace(span, params.output_kind, self._failed)

    def close(self) -> None:
        self._provider.shutdown()


class RequestTrace:
    """The span of one request, until its end."""

    def __init__(self, span: Any, output_kind: RequestOutputKind, failed: Any) -> None:
        self._span = span
        self._delta = output_kind is RequestOutputKind.DELTA
        self._failed = failed
        self._started = time.monotonic()
        self._num_tokens = 0
        self._last: RequestOutput | None = None

    def note(self, output: RequestOutput) -> None:
        """The request's next output."""
        num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
        self._num_tokens = num_tokens + (self._num_tokens if self._delta else 0)
        self._last = output

    def end(self) -> None:
        """Without a last output that says how it ended, the request was aborted."""
        last = self._last
        reasons = [completion.finish_reason or "abort" for completion in last.outputs] if last else ["abort"]
        self._span.set_attributes(
            {
                "gen_ai.usage.prompt_tokens": len(last.prompt_token_ids or ()) if last else 0,
                "gen_ai.usage.completion_tokens": self._num_tokens,
                "gen_ai.response.finish_reasons": reasons,
                "gen_ai.latency.e2e": time.monotonic() - self._started,
                **(_latencies(last.metrics) if last and last.metrics else {}),
            }
        )
        if "error" in reasons:
            self._span.set_status(self._failed)
        self._span.end()


def _latencies(stats: RequestStateStats) -> dict[str, float]:
    if not stats.first_token_ts:
        return {}
    return {
        "gen_ai.latency.time_to_first_token": stats.first_token_latency,
        "gen_ai.latency.time_in_queue": stats.scheduled_ts - stats.queued_ts,
        "gen_ai.latency.time_in_model_prefill": stats.first_token_ts - stats.scheduled_ts,
        "gen_ai.latency.time_in_model_decode": stats.last_token_ts - stats.first_token_ts,
        "gen_ai.latency.time_in_model_inference": stats.last_token_ts - stats.scheduled_ts,
    }
