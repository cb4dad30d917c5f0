"""Chunked prefill, which the library has up to 0.7: pieces and decodes side by side in one row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.neuron.configs import build
from tests.neuronx import standin
from tests.neuronx.inputs import decode, model_input
from tests.neuronx.test_config import LLAMA
from tests.neuronx.test_inputs import LIMITS
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.device.model_input import Kind
from vllm.settings.faults import NeuronConfigError
from vllm.settings.resolve import resolve
from vllm.targets.neuronx.config import neuron_entries
from vllm.targets.neuronx.input_checks import row_faults
from vllm.targets.neuronx.inputs import build_calls
from vllm.targets.neuronx.versions import Version

LENGTH = 256
CHUNKS = dataclasses.replace(LIMITS, block_size=8, num_blocks=32, chunk=16)


@pytest.fixture(params=[v for v in standin.VERSIONS if v < "0.8"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("chunks"), max_position_embeddings=512)


def _llm(model, device, **options):
    options = {"enable_chunked_prefill": True, "enable_prefix_caching": False, "block_size": 32, **options}
    return LLM(model=str(model), device=device, max_num_seqs=4, max_model_len=LENGTH, dtype="float32", **options)


def _prompts():
    shared = np.random.default_rng(1).integers(3, 320, 240).tolist()
    return [shared[:length] for length in (1, 2, 31, 32, 33, 64, 129, 200, 240)] + [shared[:70] + [5], shared[:150]]


def _tokens(llm, params):
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in _prompts()], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("prefixes", [False, True])
def test_tokens_are_the_cpu_targets(library, model, prefixes):
    """Chunks far shorter than prompts, beside decodes of other rows; with prefixes found again, in part and whole."""
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    device = _llm(model, "neuronx", max_num_batched_tokens=40, enable_prefix_caching=prefixes)
    expected = _tokens(_llm(model, "cpu"), params)
    assert _tokens(device, params) == expected
    assert _tokens(device, params) == expected


def test_host_sampling_serves_what_the_cpu_target_serves(library, model, monkeypatch):
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    params = SamplingParams(temperature=0.9, seed=3, min_p=0.01, presence_penalty=0.3, logprobs=2, max_tokens=6)
    device = _llm(model, "neuronx", max_num_batched_tokens=48)
    assert _tokens(device, params) == _tokens(_llm(model, "cpu"), params)


def test_rows_lie_side_by_side():
    given = model_input(Kind.CHUNK, [[20, 21, 22], [30]], [2, 0], [8, 5])
    given.block_table = np.asarray([[3, 1, 0], [4, 0, 0]], np.int32)
    given.slot_mapping = np.asarray([[8, 9, 10], [37, -1, -1]], np.int32)
    given.samples = np.asarray([False, True])
    given.sampling_params = np.asarray([(1, 1, 1), (5, 0.9, 0.5)], np.float32)
    (call,) = build_calls(given, CHUNKS)
    arguments = {name: value.tolist() for name, value in call.arguments.items()}
    assert arguments["input_ids"] == [[20, 21, 22, 30]] and arguments["position_ids"] == [[8, 9, 10, 5]]
    assert arguments["slot_mapping"] == [8, 9, 10, 37] and arguments["seq_ids"] == [0]
    assert arguments["full_context_lens"] == [11, 6] and arguments["computed_context_lens"] == [8, 5]
    assert arguments["block_table"] == given.block_table.tolist()
    assert [row[0] for row in arguments["sampling_params"]] == [1, 5, 1, 1]
    assert call.rows.tolist() == [0, 1]


def test_what_no_chunk_holds():
    tables = {"block_table": np.zeros((2, 8), np.int32)}
    assert not row_faults(decode([5, 6], [0, 1], [3, 63], **tables), CHUNKS)
    assert list(row_faults(decode([5, 6], [0, 1], [3, 64], **tables), CHUNKS)) == [1]
    long = model_input(Kind.CHUNK, [[5] * 12, [6] * 5], [0, 1], [0, 0], **tables)
    assert "17 tokens exceeds the 16" in row_faults(long, CHUNKS)[0]


def _resolved(**options):
    options = {"enable_chunked_prefill": True, "max_model_len": 1024, "max_num_seqs": 8, **options}
    return resolve(build(device="neuronx", hf_config=LLAMA, **options))


def test_one_block_more_takes_what_must_not_be_kept(library):
    config = _resolved(num_gpu_blocks_override=256, enable_prefix_caching=True)
    entries = neuron_entries(config, Version(0, 7))
    assert entries["pa_num_blocks"] == config.cache_config.num_blocks + 1 == 257
    assert entries["max_context_length"] == config.scheduler_config.max_num_batched_tokens == 512
    assert not entries["is_prefix_caching"] and entries["is_block_kv_layout"]
    assert config.scheduler_config.mixed_steps


def test_buckets_are_the_contracts_worked_example(library):
    import importlib

    from vllm.targets.neuronx.config import build_inference_config
    from vllm.targets.neuronx.library import load_library
    from vllm.targets.neuronx.registry import application_class

    found, config = load_library(), _resolved(max_num_batched_tokens=256)
    built = build_inference_config(config, found, application_class(LLAMA, found.model_types))
    buckets = importlib.import_module("neuronx_distributed_inference.modules.autobucketing")
    expected = [[128, 1], [128, 8], [128, 16], [256, 1], [256, 8], [256, 16]]
    assert buckets.generate_chunk_buckets(built) == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_num_batched_tokens": 2048}, "at most max_model_len=1024"),
        ({"override_neuron_config": {"context_encoding_buckets": [512, 1024]}}, "buckets of their own"),
        ({"override_neuron_config": {"token_generation_buckets": [100, 1024]}}, "no multiple of block_size=32"),
        ({"override_neuron_config": {"chunked_prefill_config": {"max_num_seqs": 3}}}, "max_num_seqs is 8"),
        ({"override_neuron_config": {"chunked_prefill_config": {"kernel_kv_tile_size": 48}}}, "must divide"),
    ],
)
def test_what_would_fail_later_is_refused(library, options, reason):
    with pytest.raises(NeuronConfigError, match=reason):
        _resolved(**options)


def test_later_versions_have_none(newest):
    with pytest.raises(NeuronConfigError, match="no longer heeds it"):
        _resolved()
