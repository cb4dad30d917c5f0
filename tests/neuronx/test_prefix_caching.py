"""Prefix caching over block KV, on the stand-in in its three versions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.neuron.configs import build
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.neuron.faults import NeuronConfigError
from vllm.neuron.platform import resolve

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LENGTH = 640


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("prefix"), max_position_embeddings=1024)


def _llm(model, device, **options):
    options = {"enable_prefix_caching": True, "enable_chunked_prefill": False, "block_size": 32, **options}
    return LLM(model=str(model), device=device, max_num_seqs=3, max_model_len=LENGTH, dtype="float32", **options)


def _tokens(llm, prompts):
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _prompts():
    shared = np.random.default_rng(0).integers(3, 320, 600).tolist()
    lengths = [1, 2, 31, 32, 33, 64, 65, 96, 257, 300, 513, 540, 600]
    return [shared[:length] for length in lengths] + [shared[:40] + [5, 6, 7], shared[:300] + [9]]


def test_tokens_are_the_cpu_targets_with_hits_and_without(library, model):
    """Prefixes are found again, in part and whole, across block and bucket edges; the second round only hits."""
    device, cpu = _llm(model, "neuronx"), _llm(model, "cpu", enable_prefix_caching=False, block_size=None)
    expected = _tokens(cpu, _prompts())
    assert _tokens(device, _prompts()) == expected
    assert _tokens(device, _prompts()) == expected
    hits = next(m.value for m in device.get_metrics() if m.name == "vllm:prefix_cache_hits")
    assert hits > 1000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_num_seqs": 1}, "max_num_seqs=1"),
        ({"block_size": 128, "max_model_len": 1000}, "block_size=128"),
        ({"override_neuron_config": {"enable_bucketing": False}}, "enable_bucketing=False"),
        ({"enable_chunked_prefill": True}, "chunked_prefill_config"),
        ({"block_size": 48, "max_model_len": 960}, "block_size=48"),
    ],
)
def test_what_goes_wrong_is_refused(newest, options, name):
    with pytest.raises(NeuronConfigError, match=name):
        resolve(build(device="neuronx", enable_prefix_caching=True, **options))
