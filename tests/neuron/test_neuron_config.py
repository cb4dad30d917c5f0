"""Every key of the Neuron config: read, ranged, cross-checked, described; and the config that vLLM's settings give."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.neuron.configs import build
from vllm.settings import host_platform, reference_docs
from vllm.settings.neuron_config import NeuronConfig, NeuronConfigError, default_neuron_config

DOCS = Path(__file__).resolve().parents[2] / "docs"

KEYS_OF_THE_LIBRARY = set(
    """
batch_size ctx_batch_size tkg_batch_size max_batch_size spec_batch_size kv_cache_batch_size is_continuous_batching
kv_cache_padding_size padding_side seq_len max_context_length max_length max_new_tokens n_active_tokens n_positions
torch_dtype cast_type attention_dtype rpl_reduce_dtype allow_input_truncation output_logits on_cpu vocab_parallel
lm_head_pad lm_head_pad_alignment_size enable_bucketing buckets context_encoding_buckets token_generation_buckets
prefix_buckets token_generation_batches bucket_n_active_tokens on_device_sampling_config disable_argmax_kernel
async_mode
is_block_kv_layout pa_num_blocks pa_block_size is_prefix_caching chunked_prefill_config windowed_context_encoding_size
flash_decoding_enabled k_cache_transposed disable_kv_cache_tiling apply_seq_ids_mask kv_cache_quant kv_quant_config
quantized quantized_checkpoints_path quantization_type quantization_dtype quantization_block_size
quantization_block_axis quantization_scale_dtype modules_to_not_convert draft_model_modules_to_not_convert
quantized_mlp_kernel_enabled activation_quantization_type rmsnorm_quantize_kernel_enabled quantize_clamp_bound
speculation_length enable_fused_speculation enable_eagle_speculation is_eagle3 is_eagle_draft
enable_eagle_draft_input_norm eagle_rolling_buffer_kernel_enabled token_tree_config is_medusa medusa_speculation_length
num_medusa_heads medusa_tree lora_config tp_degree pp_degree ep_degree world_size cp_degree mlp_cp_degree
attention_dp_degree sequence_parallel_enabled weight_gather_seq_len_threshold start_rank_id local_ranks_size
save_sharded_checkpoint skip_sharding strided_context_parallel_kernel_enabled ep_dispatch_cc_option fused_qkv
attn_kernel_enabled qkv_kernel_enabled qkv_nki_kernel_enabled mlp_kernel_enabled out_proj_kernel_enabled
qkv_cte_nki_kernel_fuse_rope attn_block_tkg_nki_kernel_enabled attn_tkg_nki_kernel_enabled
attn_tkg_builtin_kernel_enabled attn_block_tkg_nki_kernel_cache_update attn_block_tkg_nki_kernel_cascaded_attention
attn_block_cte_nki_kernel_enabled cc_pipeline_tiling_factor seq_len_threshold_for_cc_tiling
weights_to_skip_layout_optimization scratchpad_page_size target skip_warmup enable_output_completion_notifications
disable_numeric_cc_token switch_cc logical_nc_config dma_order_config capacity_factor glu_mlp glu_type
hidden_act_scaling_factor hidden_act_bias early_expert_affinity_modulation disable_normalize_top_k_affinities
fused_shared_experts shared_experts_sequence_parallel_enabled moe_tp_degree moe_ep_degree hybrid_sharding_config
blockwise_matmul_config router_config router_dtype act_fn return_expert_index return_router_logits
transpose_shared_experts_weights moe_mask_padded_tokens use_index_calc_kernel skip_vision
""".split()  # noqa: SIM905
)


def faults_of(values, **changes):
    with pytest.raises(NeuronConfigError) as caught:
        NeuronConfig.from_dict({**values, **changes})
    return {fault.name: str(fault) for fault in caught.value.faults}


def test_every_key_of_the_library_is_known():
    assert not KEYS_OF_THE_LIBRARY - {info.name for info in NeuronConfig.describe()}


def test_library_defaults_follow_from_batch_size_and_seq_len():
    config = NeuronConfig(batch_size=4, seq_len=256)
    assert (config.ctx_batch_size, config.tkg_batch_size, config.max_batch_size, config.kv_cache_batch_size) == (4,) * 4
    assert (config.max_context_length, config.max_length, config.n_positions, config.pa_block_size) == (256,) * 4
    assert (config.buckets, config.pa_num_blocks, config.max_new_tokens) == ([256], 4, None)
    assert (config.world_size, config.local_ranks_size, config.logical_nc_config, config.lm_head_pad) == (
        1,
        1,
        1,
        False,
    )
    assert NeuronConfig(seq_len=256, max_context_length=100).max_new_tokens == 156
    assert NeuronConfig(seq_len=32768).scratchpad_page_size == 1024
    assert NeuronConfig(seq_len=32767).scratchpad_page_size is None


def test_the_config_of_vllms_settings():
    config = build(max_num_seqs=4, tensor_parallel_size=32, max_model_len=128, dtype="half")
    neuron = default_neuron_config(config)
    changed = neuron.changed()
    sampling = changed.pop("on_device_sampling_config")
    assert changed == {
        "batch_size": 4,
        "ctx_batch_size": 1,
        "torch_dtype": "float16",
        "enable_bucketing": True,
        "tp_degree": 32,
    }
    assert sampling.changed() == {"dynamic": True}
    assert (neuron.seq_len, neuron.max_context_length, neuron.padding_side, neuron.quantized) == (
        128,
        128,
        "right",
        False,
    )
    assert (neuron.on_device_sampling, neuron.global_topk, neuron.quantization) == (True, 256, None)
    assert not default_neuron_config(build(max_num_seqs=1)).is_continuous_batching


def test_global_topk_is_at_most_the_vocabulary():
    neuron = default_neuron_config(build(max_num_seqs=1, hf_config={"vocab_size": 64}))
    assert neuron.global_topk == 64


def test_an_overriding_section_replaces_single_entries():
    neuron = default_neuron_config(build(max_num_seqs=1), {"on_device_sampling_config": {"global_topk": 64}})
    assert neuron.on_device_sampling_config.dynamic
    assert neuron.global_topk == 64
    neuron = default_neuron_config(build(max_num_seqs=1), {"on_device_sampling_config": None})
    assert (neuron.on_device_sampling, neuron.global_topk) == (False, 0)


def test_environment_fills_what_overrides_leave(monkeypatch):
    monkeypatch.setenv("NEURON_CONTEXT_LENGTH_BUCKETS", "256,1024")
    monkeypatch.setenv("NEURON_TOKEN_GEN_BUCKETS", "512")
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    neuron = default_neuron_config(build(max_num_seqs=1))
    assert (neuron.context_buckets, neuron.token_buckets) == ([256, 1024], [512, 1024])
    assert not neuron.on_device_sampling
    neuron = default_neuron_config(build(max_num_seqs=1), {"context_encoding_buckets": [128, 1024]})
    assert neuron.context_buckets == [128, 1024]


def test_logical_cores_follow_platform_and_environment(monkeypatch):
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    assert (NeuronConfig().logical_nc_config, NeuronConfig().lm_head_pad) == (2, True)
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "1")
    assert NeuronConfig().logical_nc_config == 1


@pytest.mark.parametrize(
    ("product", "cores"), [("trn2.48xlarge", 2), ("trn1.32xlarge", 1), ("m7i.large", 1), (None, 1)]
)
def test_logical_cores_follow_the_instance(product, cores, tmp_path, monkeypatch):
    """What the library would take by itself: it is told, so that we must not say 1 where its default is 2."""
    if product:
        (tmp_path / "product_name").write_text(f"{product}\n")
    monkeypatch.setattr(host_platform, "PRODUCT_NAME", tmp_path / "product_name")
    assert (NeuronConfig().logical_nc_config, NeuronConfig().lm_head_pad) == (cores, cores == 2)
    monkeypatch.setenv("NEURON_RT_VIRTUAL_CORE_SIZE", "1")
    assert NeuronConfig().logical_nc_config == 1


def test_ladders():
    config = NeuronConfig(seq_len=1000, max_context_length=363, enable_bucketing=True)
    assert (config.context_buckets, config.token_buckets) == ([128, 256, 363], [128, 256, 512, 1000])
    config = NeuronConfig(seq_len=1000, max_context_length=363)
    assert (config.context_buckets, config.token_buckets) == ([363], [1000])


def test_a_short_list_is_extended_with_a_notice():
    config = NeuronConfig(
        seq_len=512, enable_bucketing=True, context_encoding_buckets=[64], token_generation_buckets=[512]
    )
    assert (config.context_buckets, config.token_buckets) == ([64, 512], [512])
    (notice,) = config.notices
    assert "context_encoding_buckets=[64] ends below 512" in notice


@pytest.mark.parametrize(
    ("entries", "form"),
    [
        ({}, "int8_per_tensor"),
        ({"quantization_type": "per_channel_symmetric"}, "int8_per_channel"),
        ({"quantization_type": "per_channel_symmetric", "quantization_dtype": "f8e4m3"}, "f8e4m3_per_channel"),
        ({"quantization_dtype": "int4"}, "int4"),
    ],
)
def test_form_of_quantised_weights(entries, form):
    assert NeuronConfig(quantized=True, **entries).quantization == form


def test_what_the_library_switches_by_itself_is_switched():
    config = NeuronConfig(
        enable_eagle_speculation=True,
        speculation_length=4,
        on_device_sampling_config={},
        mlp_tkg_nki_kernel_enabled=True,
        attn_tkg_nki_kernel_enabled=True,
        qkv_kernel_enabled=True,
    )
    assert config.enable_fused_speculation and config.mlp_kernel_enabled and config.attn_block_tkg_nki_kernel_enabled
    config = NeuronConfig(quantized_mlp_kernel_enabled=True)
    assert (config.quantization_type, config.quantization_dtype) == ("per_channel_symmetric", "f8e4m3")
    config = NeuronConfig(attention_dp_degree=2, tp_degree=4, batch_size=8, is_continuous_batching=True)
    assert (config.kv_cache_batch_size, config.kv_cache_padding_size) == (4, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", "bf16"])
def test_spellings_of_a_dtype(dtype):
    assert NeuronConfig(torch_dtype=dtype).torch_dtype == "bfloat16"


def test_a_dtype_object_is_read_by_its_name():
    class Float16:
        def __str__(self) -> str:
            return "torch.float16"

    assert NeuronConfig(torch_dtype=Float16()).torch_dtype == "float16"


def test_unknown_keys_name_the_nearest():
    faults = faults_of({"enable_fused_speculatuon": True, "tp_degre": 2, "zzz": 1, "lora_serving_config": {}})
    assert "Did you mean 'enable_fused_speculation'?" in faults["enable_fused_speculatuon"]
    assert "Did you mean 'tp_degree'?" in faults["tp_degre"]
    assert faults["zzz"] == "zzz: unknown key"
    assert "Use 'lora_config'" in faults["lora_serving_config"]


def test_all_faults_are_in_one_error():
    faults = faults_of(
        {
            "batch_size": 0,
            "seq_len": "128",
            "enable_bucketing": "yes",
            "tp_degree": True,
            "torch_dtype": "int8",
            "buckts": [1],
            "on_device_sampling_config": {"global_topk": 300, "temprature": 1.0},
            "lora_config": [1],
        }
    )
    assert set(faults) == {
        "batch_size",
        "seq_len",
        "enable_bucketing",
        "tp_degree",
        "torch_dtype",
        "buckts",
        "on_device_sampling_config.global_topk",
        "on_device_sampling_config.temprature",
        "lora_config",
    }
    assert "must be at least 1" in faults["batch_size"]
    assert "expected integer, got a text" in faults["seq_len"]
    assert "expected integer, got a boolean" in faults["tp_degree"]
    assert "must be one of" in faults["torch_dtype"]
    assert "must be at most 256" in faults["on_device_sampling_config.global_topk"]
    assert "Did you mean 'temperature'?" in faults["on_device_sampling_config.temprature"]
    assert "expected a mapping, got a list" in faults["lora_config"]


BUCKETS = {"enable_bucketing": True, "seq_len": 512}
BLOCKS = {
    "is_block_kv_layout": True,
    "is_prefix_caching": True,
    "pa_block_size": 32,
    "seq_len": 128,
    "pa_num_blocks": 4,
}
GRID = {**BLOCKS, **BUCKETS, "pa_num_blocks": 16}
QKV = {"qkv_kernel_enabled": True}
TKG_KERNEL = {**QKV, "attn_block_tkg_nki_kernel_enabled": True}


@pytest.mark.parametrize(
    ("base", "entry", "culprit"),
    [
        ({}, {"max_context_length": 129}, "max_context_length"),
        ({}, {"max_length": 256}, "max_length"),
        ({}, {"padding_side": "left"}, "padding_side"),
        ({}, {"allow_input_truncation": True}, "allow_input_truncation"),
        ({}, {"pa_block_size": 256}, "pa_block_size"),
        ({}, {"attention_dtype": "float32"}, "attention_dtype"),
        ({}, {"cast_type": "sometimes"}, "cast_type"),
        (BUCKETS, {"context_encoding_buckets": [256, 128, 512]}, "context_encoding_buckets"),
        (BUCKETS, {"context_encoding_buckets": [1024]}, "context_encoding_buckets"),
        (BUCKETS, {"token_generation_buckets": []}, "token_generation_buckets"),
        (BUCKETS, {"token_generation_buckets": [128.0, 512]}, "token_generation_buckets"),
        (BUCKETS, {"prefix_buckets": [512]}, "prefix_buckets"),
        ({}, {"context_encoding_buckets": [128]}, "context_encoding_buckets"),
        (GRID, {"prefix_buckets": [100, 512], "context_encoding_buckets": [512]}, "prefix_buckets"),
        ({"batch_size": 4}, {"tkg_batch_size": 2}, "tkg_batch_size"),
        ({"batch_size": 4}, {"ctx_batch_size": 5}, "ctx_batch_size"),
        ({"batch_size": 4}, {"is_continuous_batching": False}, "is_continuous_batching"),
        (BUCKETS, {"token_generation_batches": [1, 2]}, "token_generation_batches"),
        (
            {**BUCKETS, "speculation_length": 3, "on_device_sampling_config": {}},
            {"token_generation_batches": 1},
            "token_generation_batches",
        ),
        ({}, {"is_prefix_caching": True}, "is_prefix_caching"),
        ({}, {"chunked_prefill_config": {"max_num_seqs": 1}}, "chunked_prefill_config"),
        ({}, {"is_block_kv_layout": True}, "is_block_kv_layout"),
        (BLOCKS, {"pa_num_blocks": 3}, "pa_num_blocks"),
        (
            {**BLOCKS, "batch_size": 2, "pa_num_blocks": 8},
            {"chunked_prefill_config": {"max_num_seqs": 2, "tkg_model_enabled": False}},
            "chunked_prefill_config",
        ),
        ({"flash_decoding_enabled": True}, {"k_cache_transposed": True}, "k_cache_transposed"),
        ({"kv_quant_config": {}}, {"kv_cache_quant": True}, "kv_cache_quant"),
        ({}, {"quantized_checkpoints_path": "/q"}, "quantized_checkpoints_path"),
        ({"quantized": True}, {"quantization_dtype": "int9"}, "quantization_dtype"),
        ({"quantized": True}, {"quantization_type": "blockwise_symmetric"}, "quantization_type"),
        ({"quantized": True}, QKV, "modules_to_not_convert"),
        ({}, {"rmsnorm_quantize_kernel_enabled": True}, "rmsnorm_quantize_kernel_enabled"),
        ({"mlp_kernel_enabled": True}, {"activation_quantization_type": "dynamic"}, "activation_quantization_type"),
        ({}, {"is_full_model_shuffled": True}, "is_full_model_shuffled"),
        ({"on_device_sampling_config": {}}, {"enable_fused_speculation": True}, "enable_fused_speculation"),
        ({}, {"speculation_length": 4}, "speculation_length"),
        ({"on_device_sampling_config": {}}, {"speculation_length": 128}, "speculation_length"),
        ({}, {"is_eagle3": True}, "is_eagle3"),
        ({}, {"token_tree_config": {"0": [1]}}, "token_tree_config"),
        (
            {"medusa_speculation_length": 4, "num_medusa_heads": 2, "on_device_sampling_config": {}},
            {"is_medusa": True, "async_mode": True},
            "is_medusa",
        ),
        ({"tp_degree": 8}, {"cp_degree": 3}, "cp_degree"),
        ({}, {"mlp_cp_degree": 2}, "mlp_cp_degree"),
        ({"tp_degree": 4}, {"attention_dp_degree": 2}, "attention_dp_degree"),
        ({}, {"strided_context_parallel_kernel_enabled": True}, "strided_context_parallel_kernel_enabled"),
        ({"tp_degree": 8}, {"ep_dispatch_cc_option": "RS_AG"}, "ep_dispatch_cc_option"),
        ({"tp_degree": 8}, {"world_size": 12}, "world_size"),
        ({"tp_degree": 8}, {"start_rank_id": 1}, "local_ranks_size"),
        ({}, {"pp_degree": 2}, "pp_degree"),
        ({"tp_degree": 32, "seq_len": 6024}, {"sequence_parallel_enabled": True}, "sequence_parallel_enabled"),
        (QKV, {"qkv_cte_nki_kernel_fuse_rope": True}, "qkv_cte_nki_kernel_fuse_rope"),
        ({}, {"attn_block_tkg_nki_kernel_enabled": True}, "attn_block_tkg_nki_kernel_enabled"),
        (TKG_KERNEL, {"flash_decoding_enabled": True}, "attn_block_tkg_nki_kernel_enabled"),
        (QKV, {"attn_block_tkg_nki_kernel_cache_update": True}, "attn_block_tkg_nki_kernel_cache_update"),
        ({}, {"attn_block_cte_nki_kernel_enabled": True}, "attn_block_cte_nki_kernel_enabled"),
        ({}, {"on_device_sampling_config": {"top_p": 0}}, "on_device_sampling_config.top_p"),
        ({}, {"on_device_sampling_config": {"top_k": 9, "global_topk": 8}}, "on_device_sampling_config.top_k"),
        ({}, {"on_device_sampling_config": {"sampling_dp_degree": 2}}, "on_device_sampling_config.sampling_dp_degree"),
        ({}, {"chunked_prefill_config": {}}, "chunked_prefill_config.max_num_seqs"),
        ({}, {"lora_config": {"max_loras": 9, "max_cpu_loras": 8}}, "lora_config.max_cpu_loras"),
        ({}, {"lora_config": {"max_loras_on_cpu": 8}}, "lora_config.max_loras_on_cpu"),
    ],
)
def test_keys_that_cannot_go_together(base, entry, culprit):
    NeuronConfig.from_dict(base)
    faults = faults_of(base, **entry)
    assert culprit in faults
    assert len(faults[culprit]) > len(culprit) + 20


def test_a_broken_key_does_not_draw_others_into_the_error():
    assert set(faults_of({"batch_size": "4", "ctx_batch_size": 3})) == {"batch_size"}
    assert set(faults_of({"seq_len": None, "max_context_length": 999})) == {"seq_len"}


def test_user_mappings_are_not_changed():
    values = {
        "enable_bucketing": True,
        "context_encoding_buckets": [64],
        "on_device_sampling_config": {"dynamic": True, "top_k": 5},
        "weights_to_skip_layout_optimization": ["x"],
    }
    before = copy.deepcopy(values)
    first, second = NeuronConfig.from_dict(values), NeuronConfig.from_dict(values)
    assert values == before
    assert first == second
    with pytest.raises(FrozenInstanceError):
        first.batch_size = 2  # type: ignore[misc]
    first.context_encoding_buckets.append(7)
    assert values == before


def test_lists_and_dicts_are_not_shared_between_configs():
    first = NeuronConfig()
    first.weights_to_skip_layout_optimization.append("x")
    assert NeuronConfig().weights_to_skip_layout_optimization == []


VALUES = {
    "batch_size": st.integers(1, 64),
    "seq_len": st.integers(1, 5000),
    "fused_qkv": st.booleans(),
    "attn_kernel_enabled": st.none() | st.booleans(),
    "torch_dtype": st.sampled_from(["bfloat16", "float32"]),
    "on_device_sampling_config": st.none() | st.fixed_dictionaries({"global_topk": st.integers(1, 256)}),
    "quantize_clamp_bound": st.floats(0.5, math.inf),
    "hybrid_sharding_config": st.none() | st.fixed_dictionaries({"moe_cte_tp_degree": st.integers(1, 8)}),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_json_and_back(values):
    config = NeuronConfig.from_dict({**values})
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = NeuronConfig.from_dict(json.loads(text))
    assert again == config
    assert json.dumps(again.to_dict()) == text


def test_docs_are_those_of_the_tables():
    remedy = "run: python -m vllm.settings.reference_docs docs"
    assert (DOCS / "neuron_config.md").read_text() == reference_docs.neuron_config_page(), remedy
    assert (DOCS / "environment.md").read_text() == reference_docs.environment_page(), remedy


def test_every_section_is_in_the_docs():
    page = reference_docs.neuron_config_page()
    sections = {info.type.split(" ")[0] for info in NeuronConfig.describe() if info.type[0].isupper()}
    documented = {section.__name__ for section in reference_docs.SECTIONS.values()}
    assert {name for name in sections if name.endswith("Config")} == documented
    assert all(info.help.endswith(".") for info in NeuronConfig.describe())
    assert page.count("\n## ") == len({info.group for info in NeuronConfig.describe()}) + len(documented)


def test_reading_is_strict_about_mappings():
    assert (
        "expected a mapping" in faults_of({"on_device_sampling_config": SimpleNamespace()})["on_device_sampling_config"]
    )
