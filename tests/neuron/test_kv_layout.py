"""Which KV layout follows from which part of a configuration, and what contradicts itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.neuron.configs import build
from vllm.settings.faults import Faults, NeuronConfigError
from vllm.settings.kv_layout import kv_layout
from vllm.settings.resolve import resolve, resolve_quietly
from vllm.settings.target import find_target
from vllm.targets.neuronx.profile import NeuronxTarget


def faults_of(**options):
    with pytest.raises(NeuronConfigError) as caught:
        resolve(build(**options))
    return {fault.name: str(fault) for fault in caught.value.faults}


def modes_of(**options):
    config = resolve(build(**options))
    assert resolve(config) == config
    neuron = config.neuron_config
    modes = (config.cache_config.enable_prefix_caching, config.scheduler_config.enable_chunked_prefill)
    assert modes == (neuron.is_prefix_caching, neuron.is_chunked_prefill)
    assert neuron.is_block_kv_layout == any(modes)
    assert config.scheduler_config.mixed_steps == modes[1]
    cache = config.cache_config
    assert (neuron.pa_block_size, neuron.pa_num_blocks) == (cache.block_size, cache.num_blocks)
    return (*modes, cache.block_size)


CONTIGUOUS = {"enable_prefix_caching": False, "enable_chunked_prefill": False}


@pytest.mark.parametrize(
    ("options", "override", "modes"),
    [
        (CONTIGUOUS, {}, (False, False, 1024)),
        ({}, {"is_block_kv_layout": False}, (False, False, 1024)),
        ({"enable_prefix_caching": True, "enable_chunked_prefill": False}, {}, (True, False, 32)),
        ({"enable_chunked_prefill": False}, {"is_prefix_caching": True}, (True, False, 32)),
        ({"enable_chunked_prefill": False}, {"is_block_kv_layout": True}, (True, False, 32)),
        ({"enable_chunked_prefill": False}, {"prefix_buckets": [512, 1024]}, (True, False, 32)),
        ({"enable_chunked_prefill": False, "block_size": 64}, {}, (True, False, 64)),
        ({"enable_chunked_prefill": False}, {"pa_block_size": 128}, (True, False, 128)),
        ({"enable_chunked_prefill": False, "block_size": 1024}, {}, (False, False, 1024)),
        (
            {"enable_prefix_caching": True, "enable_chunked_prefill": False, "block_size": 32},
            {"is_prefix_caching": True, "is_block_kv_layout": True, "pa_block_size": 32, "pa_num_blocks": 1024},
            (True, False, 32),
        ),
        ({"enable_prefix_caching": False, "enable_chunked_prefill": True}, {}, (False, True, 32)),
        ({"enable_prefix_caching": False, "enable_chunked_prefill": True, "block_size": 16}, {}, (False, True, 16)),
        ({"enable_prefix_caching": False}, {"chunked_prefill_config": {}}, (False, True, 32)),
        ({"enable_prefix_caching": False}, {"is_block_kv_layout": True}, (False, True, 32)),
        ({"enable_prefix_caching": True, "enable_chunked_prefill": True}, {}, (True, True, 32)),
        ({"enable_prefix_caching": True}, {"chunked_prefill_config": {"max_num_seqs": 32}}, (True, True, 32)),
        ({"enable_prefix_caching": False}, {"chunked_prefill_config": None}, (False, False, 1024)),
    ],
)
def test_any_part_that_agrees_with_itself_suffices(options, override, modes):
    assert modes_of(**options, override_neuron_config=override) == modes


@pytest.mark.parametrize(
    ("options", "override", "culprits"),
    [
        ({"enable_prefix_caching": False}, {"is_prefix_caching": True}, {"is_prefix_caching"}),
        ({"enable_prefix_caching": True}, {"is_prefix_caching": False}, {"is_prefix_caching"}),
        ({"enable_prefix_caching": True}, {"is_block_kv_layout": False}, {"is_block_kv_layout"}),
        ({"enable_chunked_prefill": True}, {"is_block_kv_layout": False}, {"is_block_kv_layout"}),
        (CONTIGUOUS, {"is_block_kv_layout": True}, {"is_block_kv_layout"}),
        ({"enable_chunked_prefill": True}, {"chunked_prefill_config": None}, {"chunked_prefill_config"}),
        (CONTIGUOUS, {"chunked_prefill_config": {}}, {"chunked_prefill_config"}),
        (CONTIGUOUS, {"prefix_buckets": [1024]}, {"prefix_buckets"}),
        ({"enable_prefix_caching": True}, {"prefix_buckets": [100, 1024]}, {"prefix_buckets"}),
        ({"enable_prefix_caching": True, "block_size": 32}, {"pa_block_size": 64}, {"pa_block_size"}),
        ({"enable_prefix_caching": True, "num_gpu_blocks_override": 1023}, {}, {"num_gpu_blocks_override"}),
        ({"enable_prefix_caching": True}, {"pa_num_blocks": 1023}, {"num_gpu_blocks_override"}),
        (
            {"enable_prefix_caching": True, "num_gpu_blocks_override": 1024},
            {"pa_num_blocks": 1025},
            {"pa_num_blocks"},
        ),
        ({"enable_chunked_prefill": True, "max_num_batched_tokens": 31}, {}, {"max_num_batched_tokens"}),
        (
            {"enable_prefix_caching": False, "enable_chunked_prefill": True, "max_num_batched_tokens": 7},
            {"is_prefix_caching": True, "is_block_kv_layout": False, "pa_num_blocks": 3},
            {"is_prefix_caching", "is_block_kv_layout", "max_num_batched_tokens", "num_gpu_blocks_override"},
        ),
    ],
)
def test_contradictions_are_one_error_that_lists_them_all(options, override, culprits):
    faults = faults_of(**options, override_neuron_config=override)
    assert set(faults) == culprits
    assert all(". " in text for text in faults.values())


def test_the_error_says_how_many_blocks_suffice():
    assert (
        "Use 1024 or more"
        in faults_of(enable_prefix_caching=True, num_gpu_blocks_override=5)["num_gpu_blocks_override"]
    )


PREFIX_GUIDE = {
    "is_prefix_caching": True,
    "is_block_kv_layout": True,
    "pa_num_blocks": 1024,
    "pa_block_size": 32,
    "context_encoding_buckets": [512, 1024],
    "prefix_buckets": [512, 1024],
}
CHUNK_GUIDE = {
    "is_block_kv_layout": True,
    "chunked_prefill_config": {"max_num_seqs": 8, "kernel_q_tile_size": 128, "kernel_kv_tile_size": 1024},
    "pa_num_blocks": 256,
}


def test_every_subset_of_the_prefix_caching_guide_means_the_same():
    """Any key left out is derived; the number of blocks and the whole grid of buckets too."""
    whole = resolve(build(block_size=32, enable_chunked_prefill=False, override_neuron_config=PREFIX_GUIDE))
    assert (whole.cache_config.block_size, whole.cache_config.num_blocks) == (32, 1024)
    for left_out in PREFIX_GUIDE:
        override = {name: value for name, value in PREFIX_GUIDE.items() if name != left_out}
        found = resolve(build(enable_chunked_prefill=False, override_neuron_config=override))
        if left_out == "pa_num_blocks":
            assert found.neuron_config.pa_num_blocks == found.cache_config.num_blocks == 1280
        else:
            assert found.neuron_config == whole.neuron_config, left_out
            assert found.cache_config.num_blocks == 1024, left_out


@pytest.mark.parametrize("asked", ["1", "true"])
def test_the_chunked_prefill_guide_as_it_is_written(monkeypatch, asked):
    """The scheduler by its variable, the tiles by their section, as many blocks as sequences need: none to add."""
    monkeypatch.setenv("DISABLE_NEURON_CUSTOM_SCHEDULER", asked)
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "enable_prefix_caching": False}
    config = resolve(build(**options, num_gpu_blocks_override=256, override_neuron_config=CHUNK_GUIDE))
    assert config.scheduler_config.mixed_steps and config.scheduler_config.max_num_batched_tokens == 256
    assert config.neuron_config.pa_num_blocks == config.cache_config.num_blocks == 8 * 1024 // 32
    assert config.neuron_config.chunked_prefill_config.kernel_q_tile_size == 128
    for left_out in CHUNK_GUIDE:
        override = {name: value for name, value in CHUNK_GUIDE.items() if name != left_out}
        again = resolve(build(**options, override_neuron_config=override))
        assert (again.neuron_config, again.scheduler_config) == (config.neuron_config, config.scheduler_config), (
            left_out
        )


def test_a_guide_with_several_slips_is_one_error_with_a_mended_value_for_each(monkeypatch):
    monkeypatch.setenv("DISABLE_NEURON_CUSTOM_SCHEDULER", "1")
    override = {**PREFIX_GUIDE, "is_block_kv_layout": False, "pa_block_size": 64, "prefix_buckets": [100, 1024]}
    faults = faults_of(
        block_size=32, num_gpu_blocks_override=900, max_num_batched_tokens=16, override_neuron_config=override
    )
    assert set(faults) == {
        "is_block_kv_layout",
        "pa_block_size",
        "pa_num_blocks",
        "prefix_buckets",
        "num_gpu_blocks_override",
        "max_num_batched_tokens",
    }
    assert "give block_size=64" in faults["pa_block_size"]
    assert "num_gpu_blocks_override=1024" in faults["pa_num_blocks"]
    assert "Use 1024 or more" in faults["num_gpu_blocks_override"]
    assert "Use 32 or more" in faults["max_num_batched_tokens"]


def test_one_half_of_the_bucket_grid_gives_the_other():
    override = {"prefix_buckets": [512]}
    neuron = resolve(build(enable_prefix_caching=True, override_neuron_config=override)).neuron_config
    assert (neuron.prefix_buckets, neuron.context_encoding_buckets) == ([512], [512, 1024])
    override = {"context_encoding_buckets": [256, 1024]}
    neuron = resolve(build(enable_prefix_caching=True, override_neuron_config=override)).neuron_config
    assert (neuron.prefix_buckets, neuron.context_encoding_buckets) == ([512, 1024], [256, 1024])


@pytest.mark.parametrize(("size", "used"), [(1, 16), (8, 16), (24, 32), (33, 48)])
def test_blocks_that_the_cpu_target_cannot_read(size, used):  # N14
    options = {"enable_prefix_caching": True, "block_size": size, "num_gpu_blocks_override": 40960 // size + 1}
    config, notices = resolve_quietly(build(**options, max_num_seqs=4, device="cpu"))
    cache = config.cache_config
    assert cache.block_size == config.neuron_config.pa_block_size == used
    assert cache.num_blocks * used >= 40960 > (cache.num_blocks - 2) * used
    assert any(f"block_size={size}" in notice and f"multiple of 16, {used} is used" in notice for notice in notices)
    config = resolve(build(enable_prefix_caching=True, enable_chunked_prefill=True, block_size=size, device="null"))
    assert config.cache_config.block_size == size


def test_blocks_that_the_accelerator_cannot_read(monkeypatch):
    monkeypatch.setattr(NeuronxTarget, "why_absent", lambda self: "")
    options = {"enable_prefix_caching": True, "device": "neuronx"}
    assert "power of two" in faults_of(**options, block_size=48)["block_size"]
    tiles = {"chunked_prefill_config": {"kernel_kv_tile_size": 1000}}
    assert "kernel_kv_tile_size" in faults_of(**options, block_size=64, override_neuron_config=tiles)["block_size"]


def test_the_accelerator_keeps_kv_contiguous_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(NeuronxTarget, "why_absent", lambda self: "")
    assert modes_of(device="neuronx") == (False, False, 1024)


@pytest.mark.parametrize("where", [{"kv_offloading_size": 1.0}, {"kv_offloading_dir": "/somewhere"}])
def test_offloaded_prefixes_and_a_draft_model_exclude_one_another(where):
    """The store would hold the target's KV and none of the draft's. Drafts out of the text itself have none."""
    draft = {"method": "draft_model", "model": "draft", "num_speculative_tokens": 3}
    faults = faults_of(device="null", **where, speculative_config=draft)
    assert 'Use method "ngram", or do not offload KV' in faults["speculative_config"]
    config = resolve(build(device="null", **where, speculative_config={"method": "ngram"}))
    assert config.cache_config.offloads_kv and config.speculative_config.method == "ngram"


# Steps.


def test_the_stock_scheduler_means_chunked_prefill(monkeypatch):
    monkeypatch.setenv("DISABLE_NEURON_CUSTOM_SCHEDULER", "true")
    assert modes_of(enable_prefix_caching=False) == (False, True, 32)
    assert modes_of(**CONTIGUOUS) == (False, False, 1024)


def test_mixed_steps_have_a_budget_that_users_set_and_see():
    config = resolve(build(enable_chunked_prefill=True))
    scheduler = config.scheduler_config
    assert scheduler.max_num_batched_tokens == find_target(config.target).profile.default_step_tokens
    assert scheduler.prefill_batch_size == scheduler.max_num_seqs == 32
    config, notices = resolve_quietly(build(enable_chunked_prefill=True, max_num_batched_tokens=100))
    assert config.scheduler_config.max_num_batched_tokens == 100
    assert any("at most 100 tokens" in notice for notice in notices)
    assert (
        resolve(build(enable_chunked_prefill=True, max_num_seqs=2000)).scheduler_config.max_num_batched_tokens == 2000
    )


# Blocks.


@given(
    st.integers(1, 5000),
    st.integers(1, 64),
    st.none() | st.integers(1, 256),
    st.none() | st.integers(1, 5000),
    st.booleans(),
)
def test_blocks_suffice_for_every_row(max_model_len, max_num_seqs, block_size, num_blocks, block_kv):
    faults = Faults()
    layout = kv_layout(max_model_len, max_num_seqs, block_size, num_blocks, block_kv, faults)
    blocks_per_sequence = -(-max_model_len // layout.block_size)
    assert layout.num_blocks >= blocks_per_sequence * max_num_seqs
    if not block_kv:
        assert (layout.block_size, layout.num_blocks) == (max_model_len, max_num_seqs)
    elif not faults:
        assert layout.block_size == (block_size or layout.block_size)
        assert layout.num_blocks == (num_blocks or layout.num_blocks)
    elif block_kv:
        assert num_blocks is not None and num_blocks < layout.num_blocks


def test_block_kv_defaults_and_the_fix_for_too_few_blocks():
    faults = Faults()
    layout = kv_layout(1000, 4, None, 127, True, faults)
    assert (layout.block_size, layout.num_blocks) == (32, 128)
    assert "Use 128 or more" in str(faults.found[0])


@pytest.mark.parametrize("device", ["cpu", "null", "neuronx"])
@pytest.mark.parametrize("given", [{"block_size": 32}, {"num_gpu_blocks_override": 33}, {"block_size": 128}])
def test_blocks_without_effect_are_noted_alike_on_each_target(device, given, monkeypatch):  # N9
    monkeypatch.setattr(NeuronxTarget, "why_absent", lambda self: "")
    config, notices = resolve_quietly(build(**CONTIGUOUS, **given, device=device))
    assert (config.cache_config.block_size, config.cache_config.num_blocks) == (1024, 32)
    assert any(f"{next(iter(given))}={next(iter(given.values()))} has no effect" in notice for notice in notices)


def test_the_guides_blocks_of_contiguous_kv():  # N9
    options = {"block_size": 128, "num_gpu_blocks_override": 4, "enable_prefix_caching": False, "max_num_seqs": 4}
    config, notices = resolve_quietly(build(**options, max_model_len=5120, device="null"))
    assert (config.cache_config.block_size, config.cache_config.num_blocks) == (5120, 4)
    assert any("block_size=128 has no effect" in notice for notice in notices)


def test_contiguous_blocks_are_given_by_the_rows():
    faults = faults_of(**CONTIGUOUS, num_gpu_blocks_override=31)
    assert "Use 32, or leave it out" in faults["num_gpu_blocks_override"]
    config = resolve(build(**CONTIGUOUS, block_size=1024, num_gpu_blocks_override=32))
    assert config.cache_config.num_blocks == 32


@pytest.mark.parametrize(("rows", "expected"), [(1, 64), (2, 96), (32, 1280)])
def test_prefixes_that_nobody_uses_have_a_quarter_more_and_at_least_a_sequence(rows, expected):
    cache = resolve(build(enable_prefix_caching=True, max_num_seqs=rows)).cache_config
    assert (cache.block_size, cache.num_blocks) == (32, expected)
    off = resolve(build(enable_prefix_caching=False, enable_chunked_prefill=True, max_num_seqs=rows)).cache_config
    assert off.num_blocks == 32 * rows


@pytest.mark.parametrize(("max_model_len", "size"), [(4096, 32), (33, 32), (32, 16), (17, 16), (16, 8), (2, 1)])
def test_blocks_are_shorter_than_a_sequence_where_prefixes_are_cached(max_model_len, size):
    config = resolve(build(device="null", enable_prefix_caching=True, max_model_len=max_model_len))
    assert config.cache_config.block_size == size
    faults = faults_of(enable_prefix_caching=True, max_model_len=max_model_len, block_size=max_model_len)
    assert "shorter than max_model_len" in faults["block_size"]


def test_the_memory_limit_takes_spare_blocks_first():
    per_block = 32 * 2 * 22 * 4 * 64 * 2
    options = {"enable_prefix_caching": True, "max_num_seqs": 4}
    assert resolve(build(**options, kv_cache_memory_bytes=140 * per_block)).cache_config.num_blocks == 140
    assert resolve(build(**options, kv_cache_memory_bytes=1000 * per_block)).cache_config.num_blocks == 160
    assert "kv_cache_memory_bytes" in faults_of(**options, kv_cache_memory_bytes=127 * per_block)
