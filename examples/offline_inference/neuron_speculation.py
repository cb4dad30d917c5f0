"""Speculative decoding: a small draft model proposes tokens, the target checks all of them in one pass.

    python examples/offline_inference/neuron_speculation.py [MODEL DRAFT]

The text is that without speculation, token for token. Without arguments a small pair is trained first, on text that
ships with Python (PyTorch and transformers are needed for that; it takes a few minutes, once). DRAFT: any model with
MODEL's vocabulary.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_pair import small_pair

from vllm import LLM, SamplingParams

PROMPTS = ["The statement is executed", "A class definition is", "If the expression is"]


def main() -> None:
    model, draft = sys.argv[1:3] if len(sys.argv) > 2 else small_pair("draft")
    params = [SamplingParams(temperature=temperature, seed=1, max_tokens=64) for temperature in (0.0, 0.0, 0.8)]
    texts = []
    for speculation in (None, {"model": draft, "num_speculative_tokens": 4}):
        llm = LLM(model=model, max_num_seqs=4, max_model_len=256, speculative_config=speculation)
        start = time.perf_counter()
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        print(f"{'with' if speculation else 'without'} a draft: {time.perf_counter() - start:.2f} s")
        texts.append([output.outputs[0].text for output in outputs])
    for output in outputs:
        metrics = output.outputs[0].spec_decode_metrics
        print(f"Prompt: {output.prompt!r}, generated text: {output.outputs[0].text!r}")
        if metrics:
            print(f"    {metrics.acceptance_length:.2f} tokens a step with drafts")
    if texts[0] != texts[1]:
        raise SystemExit("the texts differ")


if __name__ == "__main__":
    main()
