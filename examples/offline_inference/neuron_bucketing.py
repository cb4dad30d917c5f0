"""Buckets: the shapes a model is compiled for, chosen by hand, and what padding each one costs.

    python examples/offline_inference/neuron_bucketing.py [MODEL]

A prompt runs in the first context-encoding bucket it fits, a decode step in the first token-generation bucket above its
position. On an accelerator the difference is paid for; on the cpu target it is only counted, so ladders can be judged
before a device is rented. `enable_bucketing: False` compiles one shape for each kind.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams

LADDERS = {
    "default ladder": {},
    "one bucket": {"enable_bucketing": False},
    "by hand": {"context_encoding_buckets": [64, 128, 512], "token_generation_buckets": [256, 512]},
}


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    prompts = ["The capital of France is", "Once upon a time, " * 20]
    sampling_params = SamplingParams(temperature=0.0, max_tokens=16, top_k=1)
    for name, ladder in LADDERS.items():
        llm = LLM(
            model=model,
            max_num_seqs=4,
            max_model_len=512,
            additional_config={"override_neuron_config": ladder},
        )
        outputs = llm.generate(prompts, sampling_params, use_tqdm=False)
        print(f"{name}: {[output.outputs[0].text for output in outputs]}")
        for metric in llm.get_metrics():
            if metric.name == "vllm:bucket_padding_tokens" and metric.value:
                kind, bucket = metric.labels["kind"], metric.labels["bucket"]
                print(f"    {kind} bucket {bucket}: {metric.value:.0f} tokens of padding")


if __name__ == "__main__":
    main()
