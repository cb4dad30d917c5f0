"""From `VllmConfig` to the library's configuration objects, in each version."""

from __future__ import annotations

import copy

import pytest

from tests.neuron.configs import TINYLLAMA, build
from vllm.settings.faults import Faults, NeuronConfigError
from vllm.settings.resolve import resolve
from vllm.targets.neuronx.checks import check_keys
from vllm.targets.neuronx.config import build_inference_config, build_neuron_config, neuron_entries
from vllm.targets.neuronx.library import load_library
from vllm.targets.neuronx.registry import (
    ARCHITECTURES,
    UNSERVED_IMAGE_TO_TEXT,
    application_class,
    check_architecture,
)
from vllm.targets.neuronx.versions import KEYS_SINCE, KEYS_UNTIL, Version, parse_version

LLAMA = {
    **TINYLLAMA,
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "pad_token_id": None,
}


def _resolved(**options):
    return resolve(build(device="neuronx", hf_config=LLAMA, **options))


def _inference_config(config):
    library = load_library()
    return build_inference_config(
        config, library, application_class(config.model_config.hf_config, library.model_types)
    )


def _faults(check, *args):
    faults = Faults()
    check(*args, faults)
    return {fault.name: str(fault) for fault in faults.found}


def test_what_the_library_is_told(library, caplog):
    made = _inference_config(_resolved(max_num_seqs=4, tensor_parallel_size=2, dtype="bfloat16"))
    neuron = made.neuron_config
    assert (neuron.tp_degree, neuron.batch_size, neuron.ctx_batch_size) == (2, 4, 1)
    assert (neuron.seq_len, neuron.max_context_length, neuron.max_length) == (1024, 1024, 1024)
    assert neuron.padding_side == "right" and neuron.is_continuous_batching and neuron.enable_bucketing
    assert neuron.context_encoding_buckets == neuron.token_generation_buckets == [128, 256, 512, 1024]
    assert str(neuron.torch_dtype) == "torch.bfloat16" and neuron.save_sharded_checkpoint
    sampling = neuron.on_device_sampling_config
    assert (sampling.dynamic, sampling.deterministic, sampling.global_topk) == (True, False, 256)
    assert "Unexpected keyword" not in caplog.text


def test_the_models_own_config_crosses_whole(library):
    made = _inference_config(_resolved())
    assert made.rope_theta == 500000.0 and made.rope_scaling["factor"] == 2.0
    assert made.num_key_value_heads == 4 and made.pad_token_id is None
    assert made._name_or_path == "tinyllama"


def test_sampling_can_be_left_to_the_host(library, monkeypatch):
    off = _inference_config(_resolved(override_neuron_config={"on_device_sampling_config": None}))
    assert off.neuron_config.on_device_sampling_config is None
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "true")
    assert _inference_config(_resolved()).neuron_config.on_device_sampling_config is None


def test_single_keys_are_replaced_and_nothing_given_is_changed(library):
    override = {"fused_qkv": True, "context_encoding_buckets": [512, 1024], "save_sharded_checkpoint": False}
    given = copy.deepcopy(override)
    for _ in range(2):
        neuron = _inference_config(_resolved(override_neuron_config=override)).neuron_config
        assert neuron.fused_qkv and neuron.context_encoding_buckets == [512, 1024]
        assert not neuron.save_sharded_checkpoint
        neuron.context_encoding_buckets.append(5)
    assert override == given


def test_one_bucket_without_bucketing(library):
    neuron = _inference_config(_resolved(override_neuron_config={"enable_bucketing": False})).neuron_config
    assert not neuron.enable_bucketing and neuron.context_encoding_buckets is None


def test_what_the_library_would_ignore_is_an_error(library):
    entries = {**neuron_entries(_resolved(), load_library().version), "fused_vkq": True}
    with pytest.raises(NeuronConfigError, match=r"fused_vkq.*would ignore it"):
        build_neuron_config(entries, load_library(), load_library().config.NeuronConfig)


def test_what_the_library_would_change_is_an_error(library, monkeypatch):
    config = _resolved()
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "2")
    with pytest.raises(NeuronConfigError, match=r"logical_nc_config.*use 2 instead"):
        _inference_config(config)


VALUES = {
    "attention_dp_degree": 2,
    "lm_head_pad": True,
    "scratchpad_page_size": 2048,
    "strided_context_parallel_kernel_enabled": True,
    "windowed_context_encoding_size": 128,
    "mlp_cp_degree": 2,
    "kv_quant_config": {},
    "token_generation_batches": [2, 4],
    "disable_argmax_kernel": True,
    "dma_order_config": {"a": 1},
    "moe_fused_nki_kernel_enabled": True,
    "hidden_act_bias": 1.0,
    "qkv_nki_kernel_enabled": True,
    "switch_cc": True,
    "weights_to_skip_layout_optimization": ["lm_head"],
    "ep_dispatch_cc_option": "RS_AG",
    "enable_ve_data_parallel": True,
}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_keys_of_later_versions_are_refused_before(name):
    from vllm.settings.neuron_config import NeuronConfig

    implied = {
        "attention_dp_degree": {"tp_degree": 2},
        "strided_context_parallel_kernel_enabled": {"tp_degree": 2, "cp_degree": 2},
        "mlp_cp_degree": {"sequence_parallel_enabled": True},
        "token_generation_batches": {"enable_bucketing": True},
    }.get(name, {})
    neuron = NeuronConfig(batch_size=4, **{name: VALUES[name]}, **implied)
    since = KEYS_SINCE[name]
    before = Version(0, since.minor - 1)
    assert f"from {since}" in _faults(check_keys, neuron, before)[name]
    assert name not in _faults(check_keys, neuron, since)


@pytest.mark.parametrize(("name", "value", "since"), [("top_k_kernel_enabled", True, 5), ("sampling_dp_degree", 2, 8)])
def test_keys_of_later_samplers_are_refused_before(name, value, since):
    from vllm.settings.neuron_config import NeuronConfig

    neuron = NeuronConfig(batch_size=4, tp_degree=2, on_device_sampling_config={name: value})
    refused = _faults(check_keys, neuron, Version(0, since - 1))
    assert f"from 0.{since}" in refused[f"on_device_sampling_config.{name}"]
    assert not _faults(check_keys, neuron, Version(0, since))


def test_keys_that_lost_their_effect_are_refused_after():
    from vllm.settings.neuron_config import NeuronConfig

    neuron = NeuronConfig(kv_cache_quant=True)
    until = KEYS_UNTIL["kv_cache_quant"][0]
    assert not _faults(check_keys, neuron, until)
    assert "kv_quant_config" in _faults(check_keys, neuron, Version(0, until.minor + 1))["kv_cache_quant"]


@pytest.mark.parametrize(
    "override",
    [
        {"ctx_batch_size": 2},
        {"on_cpu": True},
        {"on_device_sampling_config": {"dynamic": False}},
        {"speculation_length": 4, "enable_fused_speculation": True},
        {"enable_fused_speculatuon": True},
        {"quantized": True, "quantized_checkpoints_path": "/nowhere.pt"},
    ],
)
def test_what_is_not_driven_is_refused_when_resolving(library, override):
    with pytest.raises(NeuronConfigError):
        _resolved(override_neuron_config=override)


def test_gguf_files_are_refused(library):
    with pytest.raises(NeuronConfigError, match="does not read GGUF"):
        _resolved(model="model.gguf")


@pytest.mark.parametrize("text", ["0.3.1", "0.10.0", "1.0.0"])
def test_versions_that_are_not_known_are_refused(newest, text, monkeypatch):
    from vllm.targets.neuronx import checks

    monkeypatch.setattr(checks, "installed", lambda: text)
    with pytest.raises(NeuronConfigError, match=r"0\.4 to 0\.9"):
        _resolved()


def test_versions_are_read_from_metadata():
    assert parse_version("0.7.15063+bafa28d5") == Version(0, 7)
    with pytest.raises(ValueError, match="cannot be understood"):
        parse_version("unknown")


# Architectures.

REGISTERED = {
    "0.4.0": {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "DbrxForCausalLM"},
    "0.7.0": set(ARCHITECTURES),
    "0.9.0": set(ARCHITECTURES),
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architectures_by_version(library, architecture):
    hf_config, found = {"architectures": [architecture]}, load_library()
    if architecture in REGISTERED[library]:
        assert application_class(hf_config, found.model_types) is not None
        assert not _faults(check_architecture, hf_config, found.version)
    else:
        assert "NxD Inference has it from" in _faults(check_architecture, hf_config, found.version)["architectures"]
        with pytest.raises(ValueError, match="no model for"):
            application_class(hf_config, found.model_types)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", "NeuronLlamaForCausalLM"),
        ("MistralForCausalLM", "NeuronLlamaForCausalLM"),
        ("Qwen2ForCausalLM", "NeuronQwen2ForCausalLM"),
        ("Qwen3MoeForCausalLM", "NeuronQwen3MoeForCausalLM"),
        ("GptOssForCausalLM", "NeuronGptOssForCausalLM"),
        ("Llama4ForConditionalGeneration", "NeuronLlama4ForCausalLM"),
    ],
)
def test_the_class_of_an_architecture(newest, architecture, expected):
    assert application_class({"architectures": [architecture]}, load_library().model_types).__name__ == expected


def test_mistral_has_its_own_class_where_the_registry_has_one():
    types = {"llama": {"causal-lm": "llama"}, "mistral": {"causal-lm": "mistral"}}
    assert application_class({"architectures": ["MistralForCausalLM"]}, types) == "mistral"


def test_the_second_architecture_of_a_checkpoint_is_found_too():
    hf_config = {"architectures": ["CustomModel", "LlamaForCausalLM"]}
    assert application_class(hf_config, {"llama": {"causal-lm": "llama"}}) == "llama"
    assert not _faults(check_architecture, hf_config, Version(0, 9))


@pytest.mark.parametrize("architecture", sorted(UNSERVED_IMAGE_TO_TEXT))
def test_image_models_are_refused_by_name(architecture):
    found = _faults(check_architecture, {"architectures": [architecture]}, Version(0, 9))
    assert "image-to-text" in found["architectures"]
    assert "Use Llama4ForConditionalGeneration" in found["architectures"]
    named = found["architectures"].rpartition(" ")[2].removeprefix("Use ")
    assert not _faults(check_architecture, {"architectures": [named]}, Version(0, 9))


def test_the_version_of_llama_4_that_pads_images_wrongly_is_refused():
    hf_config = {"architectures": ["Llama4ForConditionalGeneration"]}
    assert "from 0.5" in _faults(check_architecture, hf_config, Version(0, 4))["architectures"]
    assert "served from NxD Inference 0.6" in _faults(check_architecture, hf_config, Version(0, 5))["architectures"]
    assert not _faults(check_architecture, hf_config, Version(0, 6))


def test_unknown_architectures_name_the_nearest():
    found = _faults(check_architecture, {"architectures": ["LamaForCausalLM"]}, Version(0, 9))
    assert "'LlamaForCausalLM'" in found["architectures"]


def test_a_model_that_no_version_computes_rightly_is_refused():  # N3
    found = _faults(check_architecture, {"architectures": ["Gemma3ForCausalLM"]}, Version(0, 9))["architectures"]
    assert "rotates the layers of full attention" in found and "No version up to 0.9" in found


def test_experts_get_the_experts_config(newest):
    library = load_library()
    application = application_class({"architectures": ["MixtralForCausalLM"]}, library.model_types)
    config = _resolved(override_neuron_config={"capacity_factor": 2.0, "router_dtype": "float32"})
    neuron = build_neuron_config(neuron_entries(config, library.version), library, application.get_neuron_config_cls())
    assert type(neuron).__name__ == "MoENeuronConfig" and neuron.capacity_factor == 2.0
    with pytest.raises(NeuronConfigError, match="capacity_factor"):
        _inference_config(config)
