"""The page that shows the engine at work (`dashboard.html`), and the figures it polls.

Figures are running totals, as they stand in the metrics; the page makes rates and quantiles of their differences. So
answering costs the same for one viewer or many, whatever the engine does, and nothing is kept for viewers who left.
The page itself holds no data and needs no key; its content security policy lets it load and run nothing but itself.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.datastructures import State

from vllm.engine.observe.metrics import Histogram, Metric, read_metrics
from vllm.entrypoints.server.health import Health, health_of
from vllm.version import __version__

page_router = APIRouter()

_COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens",
    "generation_tokens": "vllm:generation_tokens",
    "cache_queries": "vllm:prefix_cache_queries",
    "cache_hits": "vllm:prefix_cache_hits",
    "rejected": "vllm:admission_rejections",
    "drafts": "vllm:spec_decode_num_drafts",
    "draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
}
_LATENCIES = {"first_token": "vllm:time_to_first_token_seconds", "between_tokens": "vllm:inter_token_latency_seconds"}


@page_router.get("/", response_class=HTMLResponse, include_in_schema=False)
@page_router.get("/dashboard", response_class=HTMLResponse)
async def dashboard() -> Response:
    """The engine at work, for people."""
    content, policy = _page()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return HTMLResponse(content, headers=headers)


@page_router.get("/dashboard/data")
async def dashboard_data(raw_request: Request) -> dict[str, Any]:
    """The figures of `/dashboard`: running totals, and what runs now."""
    state = raw_request.app.state
    return figures(state, await health_of(state))


def figures(state: State, health: Health) -> dict[str, Any]:
    """time: monotonic seconds of the sample. state: ready, starting, draining, dead or stuck; `ready` is true in the
    first alone, where /health is 200. startup: the progress of a start."""
    values = _Values(read_metrics(state.metrics))
    return {
        "time": time.monotonic(),
        "version": __version__,
        "state": health.label,
        "ready": health is Health.READY,
        "draining": health is Health.DRAINING,
        "startup": state.readiness.progress.to_dict() if health is Health.STARTING else None,
        **_model(state),
        "rows": {"used": values.total("vllm:num_requests_running"), "total": values.total("vllm:num_slots")},
        "waiting": values.total("vllm:num_requests_waiting"),
        "kv_usage": values.total("vllm:kv_cache_usage_perc"),
        "counters": {
            **{name: values.total(family) for name, family in _COUNTERS.items()},
            "finished": values.by("vllm:request_success", "finished_reason"),
        },
        "latency": {name: values.histogram(family) for name, family in _LATENCIES.items()},
        "buckets": values.buckets(),
    }


def _model(state: State) -> dict[str, Any]:
    """What is served. Known once the engine runs."""
    if not hasattr(state, "engine_client"):
        return {"models": [], "target": "", "max_model_len": 0, "chat": True, "prefix_caching": False}
    config = state.engine_client.vllm_config
    return {
        "models": state.openai_serving_models.names,
        "target": config.target,
        "max_model_len": config.model_config.max_len,
        "chat": state.openai_serving_chat.renderer.has_chat_template,
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
    }


class _Values:
    """Metrics by family, summed over the labels that a page has no use for."""

    def __init__(self, metrics: Any) -> None:
        self._families: dict[str, list[Metric]] = defaultdict(list)
        for metric in metrics:
            self._families[metric.name].append(metric)

    def total(self, family: str) -> float:
        return sum(getattr(metric, "value", 0.0) for metric in self._families[family])

    def by(self, family: str, label: str) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        for metric in self._families[family]:
            totals[metric.labels[label]] += getattr(metric, "value", 0.0)
        return totals

    def histogram(self, family: str) -> dict[str, Any]:
        """buckets: upper bound in seconds (null: none) and the number of observations up to it."""
        found = [metric for metric in self._families[family] if isinstance(metric, Histogram)]
        if not found:
            return {"count": 0, "sum": 0.0, "buckets": []}
        (histogram,) = found
        buckets = [[None if bound == "+Inf" else float(bound), count] for bound, count in histogram.buckets.items()]
        return {"count": histogram.count, "sum": histogram.sum, "buckets": buckets}

    def buckets(self) -> list[dict[str, Any]]:
        """Compiled shapes that ran: how often, real tokens in them, padding."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for name in ("uses", "tokens", "padding"):
            family = f"vllm:bucket_{name}" + ("_tokens" if name == "padding" else "")
            for metric in self._families[family]:
                shape = (metric.labels["kind"], metric.labels["bucket"])
                row = rows.setdefault(shape, {"kind": shape[0], "bucket": shape[1]})
                row[name] = getattr(metric, "value", 0.0)
        return sorted(rows.values(), key=lambda row: (row["kind"], len(row["bucket"]), row["bucket"]))


@cache
def _page() -> tuple[str, str]:
    """The page, and a policy that allows its own style and script by their hashes, and requests to its own server."""
    content = Path(__file__).with_name("dashboard.html").read_text(encoding="utf-8")
    scripts, styles = (
        " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL))
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
