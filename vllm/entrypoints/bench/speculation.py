"""What a server's speculative decoding did during a run: differences of its metrics, under vLLM's names of reports."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from vllm.entrypoints.bench.http_client import HttpClient

_PREFIX = "vllm:spec_decode_num_"

Drafts = dict[str, float]
"""Values by name without its prefix, or by place: drafts, draft_tokens, accepted_tokens, 0, 1, ..."""


async def read_drafts(client: HttpClient) -> Drafts | None:
    """None of a server that tells nothing of it."""
    try:
        exchange = await client.get("/metrics")
        families = list(text_string_to_metric_families(exchange.body.decode())) if exchange.status == 200 else []
    except (OSError, ValueError):
        return None
    drafts: Drafts = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith(_PREFIX) and sample.name.endswith("_total"):
            name = sample.labels.get("position") or sample.name.removeprefix(_PREFIX).removesuffix("_total")
            drafts[name] = drafts.get(name, 0) + sample.value
    return drafts or None


def summarise(before: Drafts | None, after: Drafts | None) -> dict[str, Any]:
    """Entries of the report; none where nothing was drafted. The acceptance rate is in percent."""
    done = {name: value - (before or {}).get(name, 0) for name, value in (after or {}).items()}
    num_drafts, num_tokens, num_accepted = (done.get(name, 0) for name in ("drafts", "draft_tokens", "accepted_tokens"))
    if not num_drafts or not num_tokens:
        return {}
    positions = sorted((name for name in done if name.isdigit()), key=int)
    return {
        "spec_decode_acceptance_rate": 100 * num_accepted / num_tokens,
        "spec_decode_acceptance_length": 1 + num_accepted / num_drafts,
        "spec_decode_num_drafts": int(num_drafts),
        "spec_decode_draft_tokens": int(num_tokens),
        "spec_decode_accepted_tokens": int(num_accepted),
        "spec_decode_per_position_acceptance_rates": [done[name] / num_drafts for name in positions],
    }
