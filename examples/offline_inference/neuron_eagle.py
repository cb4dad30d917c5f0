"""EAGLE: a head of one layer drafts from what the target knows of its tokens, the target checks all drafts in one pass.

    python examples/offline_inference/neuron_eagle.py [MODEL DRAFT [eagle3]]

The text is that without speculation, token for token. Without arguments a small pair is trained first, on text that
ships with Python (PyTorch and transformers are needed for that; it takes a few minutes, once). DRAFT is a directory:
a public EAGLE checkpoint, or one with the target's embeddings and output matrix inside, as NxD Inference wants it.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_pair import small_pair

from vllm import LLM, SamplingParams


def main() -> None:
    model, draft = sys.argv[1:3] if len(sys.argv) > 2 else small_pair("eagle")
    speculation = {"method": sys.argv[3] if len(sys.argv) > 3 else "eagle", "model": draft, "num_speculative_tokens": 3}
    prompts = ["The statement is executed", "A class definition is", "If the expression is"]
    params = SamplingParams(temperature=0.0, max_tokens=64)
    texts = {}
    for name, options in (("plain", {}), ("speculative", {"speculative_config": speculation})):
        llm = LLM(model=model, max_num_seqs=4, max_model_len=256, **options)
        start = time.perf_counter()
        outputs = llm.generate(prompts, params)
        print(f"{name}: {time.perf_counter() - start:.2f} s")
        texts[name] = [output.outputs[0].text for output in outputs]
    for output in outputs:
        print(f"Prompt: {output.prompt!r}, generated text: {output.outputs[0].text!r}")
        print(output.outputs[0].spec_decode_metrics)
    if texts["plain"] != texts["speculative"]:
        raise SystemExit("the texts differ")


if __name__ == "__main__":
    main()
