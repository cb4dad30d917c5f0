"""Compile once, serve many times: artifacts in a directory of your own, and starts that may not compile.

    python examples/offline_inference/neuron_precompiled.py [MODEL [DIRECTORY]]

The first call makes the artifact in DIRECTORY, as a build job would. The second opens it with `compile=False`: where
nothing in DIRECTORY fits its settings it refuses to start, saying how they differ, instead of compiling for half an
hour in production. DIRECTORY can be copied to other machines, or be a volume that they share.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NEURON_COMPILED_ARTIFACTS"] = sys.argv[2] if len(sys.argv) > 2 else scratch
        settings = {"model": model, "max_num_seqs": 4, "max_model_len": 128}
        LLM(**settings)
        print("compiled:", *sorted(path.name for path in Path(os.environ["NEURON_COMPILED_ARTIFACTS"]).glob("[!.]*")))

        llm = LLM(**settings, compile=False)
        (output,) = llm.generate("The capital of France is", SamplingParams(temperature=0.0, max_tokens=16))
        print(f"loaded: {output.outputs[0].text!r}")

        try:
            LLM(**{**settings, "max_num_seqs": 8}, compile=False)
        except Exception as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    main()
