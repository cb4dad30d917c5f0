"""Weights of eight bits instead of sixteen.

    python examples/offline_inference/neuron_int8_quantization.py [MODEL [QUANTISED]]

On an accelerator QUANTISED is a directory of safetensors files with the quantised weights, written beforehand by the
library's `save_quantized_state_dict`; it is read and never written. The cpu target quantises MODEL itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    quantisation = {
        "quantized": True,
        "quantization_dtype": "int8",
        "quantization_type": "per_channel_symmetric",
    }
    if len(sys.argv) > 2:
        quantisation["quantized_checkpoints_path"] = sys.argv[2]
    llm = LLM(model=model, max_num_seqs=4, max_model_len=128, override_neuron_config=quantisation)

    prompts = ["The president of the United States is", "The capital of France is", "The future of AI is"]
    for output in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32)):
        print(f"Prompt: {output.prompt!r}, generated text: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
