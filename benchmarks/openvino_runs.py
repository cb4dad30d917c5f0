"""What `engine_runs.py` is for engines with vLLM's classes, for OpenVINO GenAI: runs in its environment.

python openvino_runs.py JOB      (JOB as there; `engine`: model, threads)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


def make_pipeline(engine: dict[str, Any], job: dict[str, Any]) -> Any:
    rows = max(job["batches"], default=1)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_seqs = rows
    scheduler.max_num_batched_tokens = max(rows * job["prompt_len"], job["prefill_len"])
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": engine["threads"], "PERFORMANCE_HINT": "LATENCY"}
    return genai.ContinuousBatchingPipeline(engine["model"], scheduler, "CPU", properties)


def run_batch(pipeline: Any, batch: int, prompt_len: int, output_len: int) -> tuple[float, float]:
    """Seconds of prefill, which is one step here, and of all later steps."""
    config = genai.GenerationConfig()
    config.max_new_tokens = output_len
    config.ignore_eos = True
    config.do_sample = False
    handles = []
    for number in range(batch):
        ids = np.array([[100 + (31 * number + i) % 197 for i in range(prompt_len)]], np.int64)
        handles.append(pipeline.add_request(number, openvino.Tensor(ids), config))
    start = time.perf_counter()
    pipeline.step()
    prefilled = time.perf_counter()
    while pipeline.has_non_finished_requests():
        pipeline.step()
    end = time.perf_counter()
    lengths = [len(output.generated_ids) for handle in handles for output in handle.read_all()]
    if lengths != [output_len] * batch:
        raise RuntimeError(f"asked for {output_len} tokens each, got {lengths}")
    return prefilled - start, end - prefilled


def main(words: list[str]) -> None:
    job = json.loads(words[0])
    pipeline = make_pipeline(job["engine"], job)
    run_batch(pipeline, 1, 16, 1)
    print("first token", flush=True)
    prompt_len, output_len, repeats = job["prompt_len"], job["output_len"], job["repeats"]
    decode = {
        str(batch): statistics.median(
            batch * (output_len - 1) / run_batch(pipeline, batch, prompt_len, output_len)[1] for _ in range(repeats)
        )
        for batch in job["batches"]
    }
    rates: dict[str, Any] = {"decode": decode}
    if job["prefill_len"]:
        times = [run_batch(pipeline, 1, job["prefill_len"], 1)[0] for _ in range(max(repeats, 3))]
        rates["prefill"] = job["prefill_len"] / statistics.median(times)
    print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
