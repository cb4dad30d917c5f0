"""Prefix caching over block KV, on the stand-in in its three versions."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from tests.neuron.configs import build
from tests.neuronx.inputs import model_input
from tests.neuronx.test_config import LLAMA
from tests.neuronx.test_inputs import LIMITS
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.device.model_input import Kind
from vllm.settings.faults import NeuronConfigError
from vllm.settings.resolve import resolve
from vllm.targets.neuronx.config import build_inference_config
from vllm.targets.neuronx.inputs import build_calls
from vllm.targets.neuronx.library import load_library
from vllm.targets.neuronx.registry import application_class

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


# The contract's worked examples: prompts of 1024 at most, blocks of 32, a hit that all but fills the prompt.

BLOCKS = dataclasses.replace(
    LIMITS, num_lines=2, max_length=1024, max_context_length=1024, vocab_size=4096, block_size=32, num_blocks=80
)
TABLE = np.random.default_rng(7).permutation(BLOCKS.num_blocks)[:32].astype(np.int32)


def _inference_config():
    options = {"enable_prefix_caching": True, "enable_chunked_prefill": False, "max_num_seqs": 2, "block_size": 32}
    config = resolve(build(device="neuronx", hf_config=LLAMA, max_model_len=1024, **options))
    found = load_library()
    return build_inference_config(config, found, application_class(LLAMA, found.model_types))


def _hit(length, computed):
    """A prompt whose token at position p is 1000 + p, the first `computed` of them cached, in the blocks of TABLE."""
    tokens = list(range(1000, 1000 + length))
    given = model_input(Kind.CHUNK, [tokens[computed:]], [0], [computed])
    given.sampling.history = np.asarray([tokens], np.int32)
    given.sampling.history_line = np.asarray([0], np.int32)
    given.block_table = TABLE[None]
    given.slot_mapping = np.asarray([[_slot(position) for position in range(computed, length)]], np.int32)
    return given


def _slot(position):
    return int(TABLE[position // 32]) * 32 + position % 32


def _executed(length, computed):
    """What the library's program is given of such a prompt, and the pair of buckets it runs in."""
    wrapper = importlib.import_module("neuronx_distributed_inference.models.prefix_wrapper")
    model = wrapper.PrefixCachingWrapper(_inference_config(), "context_encoding_model")
    seen = {}
    model.graph = lambda _, **arguments: seen.update(arguments) or torch.zeros(1)
    (call,) = build_calls(_hit(length, computed), BLOCKS)
    names = ("input_ids", "position_ids", "seq_ids", "sampling_params", "slot_mapping", "block_table")
    lengths = ("full_context_lens", "computed_context_lens")
    model.forward(*(torch.as_tensor(call.arguments[name]) for name in (*names, *lengths)))
    return {name: value[0].tolist() for name, value in seen.items()}, model.executed[-1]["bucket"]


def test_the_contracts_example_600_tokens_576_of_them_cached(library):
    given, bucket = _executed(600, 576)
    assert bucket == [512, 512]
    assert given["input_ids"] == list(range(1088, 1600)) and given["position_ids"] == list(range(88, 600))
    assert given["slots"] == [-1] * 488 + [_slot(position) for position in range(576, 600)]
    assert given["table"] == TABLE[:16].tolist() and given["mask"] == [1] * 88 + [0] * 424


def test_the_contracts_example_1000_tokens_992_of_them_cached(library):
    given, bucket = _executed(1000, 992)
    assert bucket == [512, 512]
    assert given["position_ids"] == list(range(488, 1000))
    assert given["slots"] == [-1] * 504 + [_slot(position) for position in range(992, 1000)]


def test_the_contracts_example_up_to_512_tokens_are_computed_without_the_prefix(library):
    given, bucket = _executed(300, 256)
    assert bucket == [512, 0]
    assert given["position_ids"] == [*range(300), *[1] * 212]
    assert given["slots"] == [-1] * 256 + [_slot(position) for position in range(256, 300)] + [-1] * 212


def test_buckets_are_the_contracts_worked_example(library):
    buckets = importlib.import_module("neuronx_distributed_inference.modules.autobucketing")
    pairs = [[512, 0], [512, 512], [512, 1024], [1024, 0], [1024, 512], [1024, 1024]]
    assert buckets.generate_prefix_buckets_for_cte(_inference_config()) == pairs
    assert buckets.generate_prefix_buckets_for_tkg(_inference_config()) == [[1, 256], [1, 512], [1, 1024]]
