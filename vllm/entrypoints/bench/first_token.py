"""A process of `vllm bench startup`: make an engine, generate one token, print the seconds of each part as JSON.

python -m vllm.entrypoints.bench.first_token OPTIONS INPUT_LEN     (OPTIONS: JSON, keyword arguments of `LLM`)
"""

from __future__ import annotations

import json
import sys
import time


def main(options: dict[str, object], input_len: int) -> None:
    started = time.perf_counter()
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

    imported = time.perf_counter()
    llm = LLM(**options)  # type: ignore[arg-type]
    ready = time.perf_counter()
    prompt = {"prompt_token_ids": [1] * input_len}
    llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)  # type: ignore[arg-type]
    done = time.perf_counter()
    stats = llm.llm_engine.executor_stats()
    compilation = 0.0 if stats["artifact_hit"] else stats["startup_seconds"]["artifact"]
    parts = {
        "import": imported - started,
        "engine": ready - imported,
        "first_token": done - ready,
        "compilation": compilation,
    }
    print(json.dumps(parts), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
