"""N-gram speculation: what a text repeats of itself is drafted from it. No draft model, nothing to train.

    python examples/offline_inference/neuron_ngram.py [MODEL]

Answers that quote, edit or continue their prompt come several tokens a step; the text is that without speculation.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams

PASSAGE = """The parrot was asleep when the customer came in, or so the shopkeeper said. It stood on its perch
very straight, its feathers were a remarkable blue, and it did not move at all, not even when the customer called."""
QUESTIONS = [f"Repeat the following text word by word.\n\n{PASSAGE}", "Name three rivers in Europe."]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    params = SamplingParams(temperature=0.0, max_tokens=96)
    texts = []
    for speculation in (None, {"method": "ngram", "num_speculative_tokens": 8}):
        llm = LLM(model=model, max_num_seqs=1, max_model_len=512, speculative_config=speculation)
        print("with n-grams" if speculation else "without")
        for question in QUESTIONS:
            start = time.perf_counter()
            (output,) = llm.chat([{"role": "user", "content": question}], params, use_tqdm=False)
            answer = output.outputs[0]
            rate = len(answer.token_ids) / (time.perf_counter() - start)
            length = answer.spec_decode_metrics.acceptance_length if answer.spec_decode_metrics else 1.0
            print(f"    {rate:.0f} tokens/s, {length:.2f} tokens a step with drafts: {answer.text!r}")
            texts.append(answer.text)
    if texts[:2] != texts[2:]:
        raise SystemExit("the texts differ")


if __name__ == "__main__":
    main()
