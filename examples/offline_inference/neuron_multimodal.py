"""Questions about images, by Llama 4.

    python examples/offline_inference/neuron_multimodal.py MODEL IMAGE [IMAGE ...] [-tp 64]

MODEL is a safetensors checkpoint with its processor (Llama 4 Scout or Maverick); IMAGE is a file that pillow reads. The
images are shown together, in one prompt. NeuronCores are needed: other targets take no images.
"""

import argparse

from PIL import Image

from vllm import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--question", default="What do you see?")
    options = parser.parse_args()
    llm = LLM(
        model=options.model,
        tensor_parallel_size=options.tensor_parallel_size,
        max_num_seqs=2,
        max_model_len=options.max_model_len,
        limit_mm_per_prompt={"image": len(options.images)},
    )

    pictures = [{"type": "image_pil", "image_pil": Image.open(path)} for path in options.images]
    content = [*pictures, {"type": "text", "text": options.question}]
    (output,) = llm.chat([{"role": "user", "content": content}], SamplingParams(temperature=0.0, max_tokens=64))
    print(f"{len(output.prompt_token_ids)} tokens of prompt: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
