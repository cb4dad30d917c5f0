"""Adapters side by side: every prompt is answered under each adapter, all of them in one batch.

    python examples/offline_inference/neuron_multi_lora.py MODEL NAME=DIRECTORY [NAME=DIRECTORY ...]

MODEL is a safetensors checkpoint of a dense Llama, Qwen 2 or Qwen 3; each DIRECTORY is an adapter in PEFT's form. They
are part of the compiled artifact, and are named at start. NeuronCores are needed: other targets take no adapters.
"""

import argparse

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapters", nargs="+", metavar="NAME=DIRECTORY")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    options = parser.parse_args()
    llm = LLM(
        model=options.model,
        tensor_parallel_size=options.tensor_parallel_size,
        max_num_seqs=4,
        max_model_len=128,
        enable_lora=True,
        max_loras=len(options.adapters),
        lora_modules=options.adapters,
    )

    names = [adapter.partition("=")[0] for adapter in options.adapters]
    prompts = ["The president of the United States is", "The capital of France is"]
    asked = [(prompt, LoRARequest(name, number)) for prompt in prompts for number, name in enumerate(names, start=1)]
    outputs = llm.generate(
        [prompt for prompt, _ in asked],
        SamplingParams(temperature=0.0, max_tokens=32),
        lora_request=[adapter for _, adapter in asked],
    )
    for output, (prompt, adapter) in zip(outputs, asked, strict=True):
        print(f"Prompt: {prompt!r}, {adapter.lora_name}: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
