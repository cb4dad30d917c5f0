"""Prefix caching: what prompts have in common is computed once, and with a directory it outlives the process.

    python examples/offline_inference/neuron_prefix_caching.py [MODEL]

The first prompt computes the system text; those behind it find it. The second engine is another process's view: it
loads the text's KV from files, so a long system text costs nothing after a restart (`cpu` and `null` targets).
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams

SYSTEM = "You are a helpful assistant. You answer in one short sentence, and you say so when you do not know. " * 12
QUESTIONS = ["What is the capital of France?", "What is the capital of Japan?", "Which rivers are in Peru?"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    sampling_params = SamplingParams(temperature=0.0, max_tokens=24)
    with tempfile.TemporaryDirectory() as directory:
        for name in ("first start", "second start"):
            llm = LLM(
                model=model,
                max_num_seqs=4,
                max_model_len=512,
                enable_prefix_caching=True,
                kv_offloading_dir=directory,
            )
            print(name)
            for question in QUESTIONS:
                started = time.perf_counter()
                messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
                (output,) = llm.chat(messages, sampling_params, use_tqdm=False)
                seconds = time.perf_counter() - started
                num_tokens, num_cached = len(output.prompt_token_ids), output.num_cached_tokens
                print(f"    {seconds:.2f} s, {num_cached} of {num_tokens} tokens cached: {output.outputs[0].text!r}")
            llm.shutdown()


if __name__ == "__main__":
    main()
