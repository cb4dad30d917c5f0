"""Figures add up: what the engine counts is what requests did."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.neuron.driver import resolved_config
from tests.neuron.test_speculation import speculating
from vllm import EngineArgs
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.observe.metrics import EngineMetrics
from vllm.engine.processes.core_client import InprocClient
from vllm.sampling_params import SamplingParams

PROMPTS = {"a": [5, 6, 7], "b": [8, 9], "c": list(range(10, 50))}


@pytest.fixture(scope="module")
def metrics(tiny_llama):
    """Three requests of four tokens each, on two rows."""
    config = resolved_config(tiny_llama, "null", max_num_seqs=2)
    client = InprocClient(config)
    metrics = EngineMetrics(config, client.executor_stats)
    for req_id, prompt in PROMPTS.items():
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        metrics.record_arrival(req_id, 0.0, len(prompt), 4)
        client.add_request(EngineCoreRequest(req_id, prompt, params.for_core()))
    while client.core.has_work:
        metrics.record_step(client.step())
    return metrics


def _values(metrics, name: str, **labels: str) -> list:
    return [metric for metric in metrics.snapshot() if metric.name == name and labels.items() <= metric.labels.items()]


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("vllm:prompt_tokens", {}, 45),
        ("vllm:prompt_tokens_by_source", {"source": "local_compute"}, 45),
        ("vllm:generation_tokens", {}, 12),
        ("vllm:request_success", {"finished_reason": "length"}, 3),
        ("vllm:request_success", {"finished_reason": "abort"}, 0),
        ("vllm:num_requests_running", {}, 0),
        ("vllm:num_requests_waiting", {}, 0),
        ("vllm:kv_cache_usage_perc", {}, 0),
        ("vllm:num_preemptions", {}, 0),
        ("vllm:num_slots", {}, 2),
        ("vllm:decode_stall_bound_tokens", {}, 4 * 64),
    ],
)
def test_counters_and_gauges(metrics, name, labels, value):
    assert [metric.value for metric in _values(metrics, name, **labels)] == [value]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vllm:time_to_first_token_seconds", 3),
        ("vllm:inter_token_latency_seconds", 9),
        ("vllm:e2e_request_latency_seconds", 3),
        ("vllm:request_queue_time_seconds", 3),
        ("vllm:request_generation_tokens", 3),
    ],
)
def test_histograms(metrics, name, count):
    assert [metric.count for metric in _values(metrics, name)] == [count]


def test_waits_of_streams_for_prompts_are_seen(tiny_llama):
    """The prompt in two pieces of 20 and 10: the stream beside it waits for both."""
    args = EngineArgs(model=str(tiny_llama), device="null", max_num_seqs=2, max_num_batched_tokens=21)
    config = args.create_engine_config()
    client = InprocClient(config)
    metrics = EngineMetrics(config, client.executor_stats)
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    client.add_request(EngineCoreRequest("stream", [5, 6, 7], params.for_core()))
    metrics.record_step(client.step())
    client.add_request(EngineCoreRequest("prompt", list(range(10, 40)), params.for_core()))
    while client.core.has_work:
        metrics.record_step(client.step())
    (stalls,) = _values(metrics, "vllm:decode_stall_seconds")
    assert (stalls.count, stalls.sum > 0) == (2, True)
    assert [metric.value for metric in _values(metrics, "vllm:decode_stall_bound_tokens")] == [21]


def test_padding_is_what_the_compiled_shapes_would_cost(metrics):
    prefill = _values(metrics, "vllm:bucket_padding_tokens", kind="prefill")
    assert sum(metric.value for metric in prefill) == 3 * 64 - 45
    uses = sum(metric.value for metric in _values(metrics, "vllm:bucket_uses", kind="decode"))
    tokens = sum(metric.value for metric in _values(metrics, "vllm:bucket_tokens", kind="decode"))
    padding = sum(metric.value for metric in _values(metrics, "vllm:bucket_padding_tokens", kind="decode"))
    assert (tokens, padding) == (9, 2 * uses - 9)


def test_the_exposition_parses_and_names_the_model(metrics):
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    labels = families["vllm:generation_tokens"].samples[0].labels
    assert labels["engine"] == "0" and labels["model_name"]
    assert "vllm:time_to_first_token_seconds" in families


def test_speculation_is_counted_and_logged(tiny_llama, monkeypatch, caplog):
    """A text of one token, four drafts a step: all of them are right."""
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "1e-9")
    config = speculating(resolved_config(tiny_llama, "null"), "ngram", 4)
    client = InprocClient(config)
    metrics = EngineMetrics(config, client.executor_stats)
    params = SamplingParams(temperature=0.0, max_tokens=11, ignore_eos=True, allowed_token_ids=[9])
    metrics.record_arrival("a", 0.0, 4, 11)
    client.add_request(EngineCoreRequest("a", [9] * 4, params.for_core()))
    with caplog.at_level("INFO"):
        while client.core.has_work:
            metrics.record_step(client.step())
        metrics.log()
    for name, value in (("drafts", 2), ("draft_tokens", 8), ("accepted_tokens", 8)):
        assert [metric.value for metric in _values(metrics, f"vllm:spec_decode_num_{name}")] == [value]
    by_position = _values(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos")
    assert {metric.labels["position"]: metric.value for metric in by_position} == dict.fromkeys("0123", 2)
    assert "acceptance length 5.00, 100% of 8 drafts accepted" in caplog.text
