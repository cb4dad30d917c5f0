"""Block KV: the layout that prefix caching and chunked prefill need, in vLLM's terms and in NxD Inference's.

    python examples/offline_inference/neuron_block_kv_layout.py [MODEL]

Any consistent part of the settings is enough; the rest is derived. Each line shows what one way of asking leads to.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2 import smollm2_path

from vllm import LLM, SamplingParams

WAYS = {
    "contiguous": {"enable_prefix_caching": False, "enable_chunked_prefill": False},
    "vLLM's options": {"enable_prefix_caching": True, "enable_chunked_prefill": False, "block_size": 32},
    "Neuron's keys": {
        "enable_chunked_prefill": False,
        "override_neuron_config": {"is_prefix_caching": True, "is_block_kv_layout": True, "pa_block_size": 32},
    },
}


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2_path())
    sampling_params = SamplingParams(temperature=0.0, max_tokens=16)
    for name, options in WAYS.items():
        llm = LLM(model=model, max_num_seqs=4, max_model_len=128, **options)
        cache = llm.llm_engine.vllm_config.cache_config
        (output,) = llm.generate("The capital of France is", sampling_params, use_tqdm=False)
        print(f"{name}: {cache.num_blocks} blocks of {cache.block_size} tokens: {output.outputs[0].text!r}")
        llm.shutdown()


if __name__ == "__main__":
    main()
