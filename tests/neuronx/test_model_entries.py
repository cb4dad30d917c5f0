"""The table of a model's own entries: what is refused, by name; what transformers reads is in it; public configs pass.

That the table is right is the matter of test_real_library.py.
"""

from __future__ import annotations

import inspect
import json

import pytest
import transformers

from tests.cli.neuron import CONFIGS, plan
from tests.neuron.configs import build
from tests.tree import ROOT
from vllm.checkpoint import normalise_config
from vllm.settings.faults import Faults, NeuronConfigError
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.resolve import resolve
from vllm.targets.neuronx.model_entries import (
    FUSED_QKV_SINCE,
    LLAMA4_ROTATION,
    ROWS,
    check_entries,
    completed,
    is_harmless,
)
from vllm.targets.neuronx.reference_docs import models_page
from vllm.targets.neuronx.registry import ARCHITECTURES
from vllm.targets.neuronx.versions import NEWEST, OLDEST, Version

SHAPES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "DbrxForCausalLM": "dbrx",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GptOssForCausalLM": "gpt_oss",
    "Llama4ForConditionalGeneration": "llama4_text",
}
LLAMA4 = {"attn_temperature_tuning": False}
SCOUT = {**LLAMA4_ROTATION, "factor": 16.0, "high_freq_factor": 1.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def faults_of(architecture, entries, max_model_len=16384, version=NEWEST, **keys):
    raw = {"architectures": [architecture], "model_type": MODEL_TYPES[architecture], **SHAPES, **entries}
    faults = Faults()
    neuron = NeuronConfig(seq_len=max_model_len, **keys)
    check_entries(normalise_config(raw), neuron, max_model_len, version, faults)
    return {fault.name: str(fault) for fault in faults.found}


def test_the_page_is_that_of_the_table():
    remedy = "run: python -m vllm.targets.neuronx.reference_docs docs/neuronx_models.md"
    assert (ROOT / "docs" / "neuronx_models.md").read_text() == models_page(), remedy


def test_every_architecture_has_its_rows():
    assert set(ROWS) == set(ARCHITECTURES) and set(FUSED_QKV_SINCE) <= set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", sorted(ROWS))
def test_every_entry_of_transformers_own_class_is_in_the_table(architecture):
    """A new version of transformers that reads one more entry fails here, and its users wait until it is shown."""
    made = transformers.CONFIG_MAPPING[MODEL_TYPES[architecture]]
    of_all = {
        *inspect.signature(transformers.PretrainedConfig.__init__).parameters,
        *dir(transformers.PretrainedConfig),
    }
    named = {*inspect.signature(made.__init__).parameters, *inspect.get_annotations(made)} - of_all
    normal_form = {"rope_parameters", "ignore_keys_at_rope_validation", "base_model_tp_plan", "base_model_pp_plan"}
    assert {name for name in named - normal_form - set(ROWS[architecture]) if not is_harmless(name)} == set()


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.iterdir()))
@pytest.mark.parametrize("version", [OLDEST, NEWEST], ids=str)
def test_public_configs_pass(name, version):
    config, faults = normalise_config(json.loads((CONFIGS / name / "config.json").read_text())), Faults()
    check_entries(config, NeuronConfig(seq_len=8192), 8192, version, faults)
    assert not faults.found


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("version", [Version(0, 5), Version(0, 9)], ids=str)
def test_a_rotation_that_the_library_leaves_out(architecture, version):  # N1
    said = faults_of(architecture, {"rope_scaling": YARN}, version=version)["rope_scaling"]
    assert f"NxD Inference {version} rotates a {architecture} without any scaling" in said and "'yarn'" in said
    assert "No version from 0.4 to 0.9 computes it; the cpu target does" in said
    assert 'Up to max_model_len=32768 the model needs none: say hf_overrides={"rope_scaling": null}' in said
    assert not faults_of("LlamaForCausalLM", {"rope_scaling": YARN}, version=version)


def test_biases_that_the_library_leaves_out():  # N2
    said = faults_of("Qwen3ForCausalLM", {"attention_bias": True})["attention_bias"]
    assert "computes as if it were False" in said
    for entries in ({"attention_bias": True}, {"mlp_bias": True}):
        assert not faults_of("LlamaForCausalLM", entries)


def test_scaling_by_the_length_of_a_sequence_is_right_while_it_scales_nothing():
    entries = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096}
    for architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        assert not faults_of(architecture, entries, max_model_len=4096)
        assert "max_model_len=4096 or less" in faults_of(architecture, entries, max_model_len=8192)["rope_scaling"]


@pytest.mark.parametrize(
    ("architecture", "entries", "windowed"),
    [
        ("MistralForCausalLM", {"sliding_window": 4096}, True),
        ("MixtralForCausalLM", {"sliding_window": 4096}, True),
        ("Qwen2ForCausalLM", {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 2}, True),
        ("Qwen2ForCausalLM", {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 4}, False),
        ("Qwen3MoeForCausalLM", {"sliding_window": 4096, "norm_topk_prob": True, "use_sliding_window": False}, False),
        ("LlamaForCausalLM", {"sliding_window": 4096, "use_sliding_window": False}, False),
    ],
)
def test_a_window_that_would_not_be_applied_bounds_the_length(architecture, entries, windowed):
    assert not faults_of(architecture, entries, max_model_len=4096)
    found = faults_of(architecture, entries, max_model_len=8192)
    assert ("Use at most 4096" in found["max_model_len"]) if windowed else not found


@pytest.mark.parametrize(
    ("architecture", "entries", "named"),
    [
        ("Qwen3MoeForCausalLM", {}, "norm_topk_prob"),  # transformers' default is False
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": True, "mlp_only_layers": [0]}, "mlp_only_layers"),
        ("Qwen2ForCausalLM", {"head_dim": 32}, "head_dim"),
        ("MixtralForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("DbrxForCausalLM", {"ffn_config": {"moe_normalize_expert_weights": 2}}, "ffn_config"),
        ("DbrxForCausalLM", {"ffn_config": {"moe_normalize_expert_weights": None}}, "ffn_config"),
        ("GptOssForCausalLM", {"swiglu_limit": 5.0}, "swiglu_limit"),
        ("GptOssForCausalLM", {"rope_scaling": {**YARN, "truncate": True}}, "rope_scaling"),
        ("GptOssForCausalLM", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("Llama4ForConditionalGeneration", LLAMA4 | {"rope_scaling": SCOUT}, "rope_scaling"),
        ("Llama4ForConditionalGeneration", {}, "max_model_len"),  # attn_temperature_tuning is on where nobody says
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("LlamaForCausalLM", {"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_other_entries_that_would_be_lost(architecture, entries, named):
    assert list(faults_of(architecture, entries)) == [named]


def test_an_unknown_entry_passes_where_it_is_off_or_its_user_says_so():
    assert not faults_of("LlamaForCausalLM", {"logit_scale": None, "use_mrope": False, "unsloth_version": "2026.1"})
    said = faults_of("LlamaForCausalLM", {"dual_chunk_attention_config": {"chunk_size": 1}})
    assert 'hf_overrides={"dual_chunk_attention_config": null}' in said["dual_chunk_attention_config"]


def test_keys_that_a_class_cannot_have():
    assert "install 0.9" in faults_of("Qwen3ForCausalLM", {}, version=Version(0, 8), fused_qkv=True)["fused_qkv"]
    assert not faults_of("Qwen3ForCausalLM", {}, fused_qkv=True)
    assert "biases" in faults_of("LlamaForCausalLM", {"attention_bias": True}, fused_qkv=True)["fused_qkv"]
    gelu = {"hidden_act": "gelu_pytorch_tanh"}
    assert (
        "silu"
        in faults_of("LlamaForCausalLM", gelu, version=Version(0, 8), mlp_kernel_enabled=True)["mlp_kernel_enabled"]
    )
    assert not faults_of("LlamaForCausalLM", gelu, mlp_kernel_enabled=True)


def test_both_doors_say_so(capsys, tmp_path, newest):  # N1, N2
    config = json.loads((CONFIGS / "qwen3-8b" / "config.json").read_text()) | {"attention_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": YARN}))
    words = ("-tp", "4", "--max-num-seqs", "4", "--max-model-len", "16384")
    status, planned = plan(capsys, tmp_path, *words)
    assert (status, {fault["name"] for fault in planned["faults"]}) == (1, {"rope_scaling", "attention_bias"})
    hf_config = normalise_config(config | {"rope_scaling": YARN})
    with pytest.raises(NeuronConfigError) as caught:
        resolve(build(device="neuronx", hf_config=hf_config, max_model_len=16384))
    assert {fault.name for fault in caught.value.faults} == {"rope_scaling", "attention_bias"}


def test_plan_refuses_gemma_3(capsys, tmp_path):  # N3
    config = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **SHAPES, "vocab_size": 262144}
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, planned = plan(capsys, tmp_path, "--max-model-len", "2048")
    assert (status, [fault["name"] for fault in planned["faults"]]) == (1, ["architectures"])


def test_a_saved_gpt_oss_gets_the_entry_that_the_library_demands():
    """transformers 5 does not write `initial_context_length` again; it is in the rotation."""
    rotation = {**YARN, "truncate": False}
    assert completed({"model_type": "gpt_oss", "rope_scaling": rotation})["initial_context_length"] == 32768
    assert completed({"model_type": "llama", "rope_scaling": rotation}) == {
        "model_type": "llama",
        "rope_scaling": rotation,
    }
