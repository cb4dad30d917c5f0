"""The Grafana dashboard asks only for what the server exposes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.server.process import serve

DASHBOARD = Path(__file__).parents[2] / "examples/online_serving/grafana.json"
SURFACE = """
vllm:num_requests_running vllm:num_requests_waiting vllm:num_requests_waiting_by_reason vllm:kv_cache_usage_perc
vllm:external_prefix_cache_queries_total vllm:external_prefix_cache_hits_total
vllm:engine_sleep_state vllm:cache_config_info vllm:prompt_tokens_total vllm:prompt_tokens_by_source_total
vllm:prompt_tokens_cached_total vllm:generation_tokens_total vllm:request_success_total vllm:num_preemptions_total
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:mm_cache_queries_total vllm:mm_cache_hits_total
vllm:admission_rejections_total vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
vllm:request_time_per_output_token_seconds_bucket vllm:e2e_request_latency_seconds_bucket
vllm:request_queue_time_seconds_bucket vllm:request_inference_time_seconds_bucket
vllm:request_prefill_time_seconds_bucket vllm:request_decode_time_seconds_bucket vllm:request_prompt_tokens_bucket
vllm:request_generation_tokens_bucket vllm:request_max_num_generation_tokens_bucket vllm:request_params_n_bucket
vllm:request_params_max_tokens_bucket vllm:iteration_tokens_total_bucket vllm:request_num_preemptions_bucket
vllm:request_prefill_kv_computed_tokens_bucket http_requests_total http_request_duration_seconds_bucket
process_resident_memory_bytes python_info vllm:num_slots vllm:artifact_hit vllm:startup_seconds vllm:bucket_uses_total
vllm:bucket_tokens_total vllm:bucket_padding_tokens_total vllm:engine_ready vllm:engine_restarts_total
"""


def test_metrics_of_vllm_and_those_the_dashboard_asks_for(tiny_llama: Path) -> None:
    asked = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    names = {name for expr in asked for name in re.findall(r"\b(?:vllm:|http_|process_)[a-z0-9_]+", expr)}
    assert len(names) > 15
    with serve(tiny_llama, "--max-model-len", "256", "--max-num-seqs", "4", "--max-num-queued-reqs", "0") as server:
        model = server.client().completions
        model.create(model="test-model", prompt="a b c", max_tokens=4)
        lines = [line for line in server.get("/metrics").text.splitlines() if not line.startswith("#")]
    exposed = {re.split(r"[{ ]", line)[0] for line in lines}
    assert not [name for name in SURFACE.split() if name not in exposed]
    assert not names - exposed
    ours = [line for line in lines if line.startswith("vllm:") and "engine_r" not in line]
    assert not [line for line in ours if 'model_name="test-model"' not in line or 'engine="0"' not in line]
