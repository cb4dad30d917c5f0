"""Chunked prefill: a long prompt is computed in pieces, beside the sequences that are generating.

    python examples/offline_inference/neuron_chunked_prefill.py [MODEL]

While four sequences generate, a long prompt arrives. What they wait for their next token is bounded by
`max_num_batched_tokens`, the tokens of a step; without chunked prefill they wait for the whole prompt.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import EngineArgs, SamplingParams
from vllm.engine.llm_engine import LLMEngine

SETTINGS = {
    "whole prompts": {"enable_chunked_prefill": False},
    "pieces, 256 tokens a step": {"enable_chunked_prefill": True, "max_num_batched_tokens": 256},
    "pieces, 64 tokens a step": {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
}
LONG = "One day the river rose and the people of the village went up the hill to wait. " * 50


def longest_step(engine: LLMEngine) -> float:
    """Milliseconds of the longest step while LONG is computed beside four running sequences."""
    sampling_params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
    for i in range(4):
        engine.add_request(f"stream {i}", "Once upon a time", sampling_params)
    for _ in range(8):
        engine.step()
    engine.add_request("long", LONG, SamplingParams(temperature=0.0, max_tokens=1))
    longest = 0.0
    while engine.has_unfinished_requests():
        started = time.perf_counter()
        engine.step()
        longest = max(longest, time.perf_counter() - started)
    return 1000 * longest


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    for name, options in SETTINGS.items():
        engine_args = EngineArgs(
            model=model, max_num_seqs=8, max_model_len=1536, enable_prefix_caching=False, **options
        )
        engine = LLMEngine.from_engine_args(engine_args)
        print(f"{name}: no stream waited longer than {longest_step(engine):.0f} ms")


if __name__ == "__main__":
    main()
