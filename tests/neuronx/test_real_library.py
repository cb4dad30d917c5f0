"""The library itself, where it can be imported: its own objects take what we give them, and keep it; and in its CPU
mode, in which its modules run as they are, what comes out is what the cpu target says.

Nothing is compiled here. tests/hardware/ runs on a device.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.neuron.configs import build
from tests.neuron.driver import Driver, load, resolved_config
from tests.neuronx.test_config import LLAMA
from tests.tiny import make_checkpoint
from vllm.checkpoint import open_checkpoint
from vllm.settings import host_platform
from vllm.settings import resolve as platform
from vllm.settings.faults import NeuronConfigError
from vllm.targets.neuronx import checks
from vllm.targets.neuronx.config import build_inference_config
from vllm.targets.neuronx.library import ROOT, load_library
from vllm.targets.neuronx.model import NeuronxDeviceModel
from vllm.targets.neuronx.model_entries import FUSED_QKV_SINCE, LLAMA4_ROTATION
from vllm.targets.neuronx.registry import application_class, known_architecture
from vllm.targets.neuronx.versions import MODELS_SINCE, OLDEST, Version

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(ROOT) is None,
    reason="neuronx-distributed-inference is not installed here (AWS's own package index has it, for Neuron instances)",
)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: True)
    config = platform.resolve(build(device="neuronx", hf_config=LLAMA, max_num_seqs=4))
    library = load_library()
    return build_inference_config(config, library, application_class(LLAMA, library.model_types))


def test_the_libraries_config_is_what_we_said(made):
    neuron = made.neuron_config
    assert (neuron.batch_size, neuron.ctx_batch_size, neuron.seq_len) == (4, 1, 1024)
    assert neuron.context_encoding_buckets == [128, 256, 512, 1024]
    assert made.rope_theta == 500000.0


@pytest.mark.parametrize("longest", [64, 181, 182, 1000, 5792, 5793])
def test_bucket_lists_agree(made, longest):
    from vllm.settings.buckets import generate_buckets

    theirs = importlib.import_module(f"{ROOT}.modules.autobucketing").generate_buckets
    assert generate_buckets(128, longest) == list(theirs(128, longest))


def test_sampling_rows_are_valid(made):
    import numpy as np

    from tests.neuronx.test_inputs import LIMITS
    from vllm.targets.neuronx.inputs import sampling_rows

    rows = sampling_rows(np.asarray([(0, 0.9, 0.7), (5, 1.0, 0.0), (-1, 1.0, 1.0)], np.float32), LIMITS)
    sampling = importlib.import_module(f"{ROOT}.modules.generation.sampling")
    sampling.validate_sampling_params(torch.from_numpy(rows), made.neuron_config.on_device_sampling_config)


@pytest.fixture
def in_cpu_mode(tmp_path, monkeypatch):
    """in_cpu_mode(checkpoint, length, **override): (config, device), modules in place of compiled graphs."""
    library = load_library()
    if library.version < Version(0, 5):
        pytest.skip(f"the CPU mode of {library.version} runs prompts and decodes with one batch size")
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: True)
    _without_layer_markers(monkeypatch)

    def load_in_cpu_mode(checkpoint, length=64, **override):
        config = resolved_config(checkpoint, "neuronx", max_num_seqs=2, max_model_len=length, override=override)
        application = application_class(config.model_config.hf_config, library.model_types)
        built = build_inference_config(config, library, application)
        built.neuron_config.on_cpu, built.neuron_config.attn_kernel_enabled = True, False
        made = application(config.model_config.model_path, built)
        if not hasattr(made, "_get_captured_tensors_offset"):
            made._get_captured_tensors_offset = lambda: 0  # called from 0.7 on, and missing in models of text
        made.to_cpu()
        return config, NeuronxDeviceModel(config, made, tmp_path)

    yield load_in_cpu_mode
    if torch.distributed.is_initialized():
        importlib.import_module("neuronx_distributed.parallel_layers.parallel_state").destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _without_layer_markers(monkeypatch):
    """Hints for the compiler between the layers of some models, which only XLA can run."""
    if importlib.util.find_spec(f"{ROOT}.models.layer_boundary_marker") is None:
        return
    markers = importlib.import_module(f"{ROOT}.models.layer_boundary_marker")
    for name in ("ModuleMarkerStart", "ModuleMarkerEnd"):
        monkeypatch.setattr(getattr(markers, name), "apply", lambda *values: values[0] if len(values) == 1 else values)


@pytest.mark.parametrize(
    ("family", "entries", "override"),
    [
        ("llama", {}, {}),
        ("llama", {}, {"on_device_sampling_config": None}),
        ("llama", {"tie_word_embeddings": True}, {}),
        ("mistral", {}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {}, {}),
    ],
    ids=["llama", "host sampling", "tied", "mistral", "qwen2", "qwen3"],
)
def test_tokens_in_the_librarys_cpu_mode_are_the_cpu_targets(in_cpu_mode, family, entries, override, tmp_path):
    """Short prompts and long ones, lines out of order, rows that join and leave."""
    checkpoint = make_checkpoint(tmp_path / "model", family, **entries)
    on_cpu = resolved_config(checkpoint, "cpu", max_num_seqs=2, max_model_len=64)
    drivers = [Driver(*in_cpu_mode(checkpoint, **override)), Driver(on_cpu, load(on_cpu, tmp_path / "cpu"))]
    for driver in drivers:
        driver.add("a", list(range(20, 29)), [1])
        driver.step(a=0)
        driver.add("b", [7], [0])
        driver.step(b=0)
        for _ in range(4):
            driver.step(b=0, a=0)
        driver.finish("a")
        driver.add("c", list(range(100, 131)), [1])
        driver.step(c=0)
        for _ in range(4):
            driver.step(c=0, b=0)
        assert not driver.errors
    assert drivers[0].tokens == drivers[1].tokens


# The table of entries (vllm/targets/neuronx/model_entries.py) against transformers, row by row.

LENGTH = 128
HEADS = {"head_dim": 16}
MIXTRAL = {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
QWEN3_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "head_dim": 32,
}
GPT_OSS = {
    "initial_context_length": 4096,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "head_dim": 32,
    "sliding_window": 128,
    "intermediate_size": 64,
    "attention_bias": True,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    | {"original_max_position_embeddings": 4096},
}
BASES = {"mistral": HEADS, "mixtral": MIXTRAL, "qwen3_moe": QWEN3_MOE}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 32
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [1.5 + i / 2 for i in range(8)],
}
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}

RIGHT = [
    *[(family, {}) for family in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")],
    *[(family, {"rope_theta": 50.0}) for family in ("llama", "qwen2", "qwen3", "mixtral", "qwen3_moe")],
    *[(family, {"rms_norm_eps": 0.3}) for family in ("llama", "qwen2", "qwen3", "mixtral", "qwen3_moe")],
    *[(family, {"tie_word_embeddings": True}) for family in ("llama", "mistral", "qwen2", "qwen3")],
    *[(family, {"hidden_act": "gelu_pytorch_tanh"}) for family in ("llama", "qwen2", "qwen3")],
    *[(family, {"hidden_act": act}) for family in ("mixtral", "qwen3_moe") for act in ("gelu", "relu")],
    *[(family, {"rope_scaling": kind}) for family in ("llama", "mistral") for kind in (YARN, LLAMA3, LINEAR)],
    *[(family, {"rope_scaling": DYNAMIC, "max_position_embeddings": LENGTH}) for family in ("llama", "qwen2", "qwen3")],
    ("llama", {"rope_scaling": LONG, "max_position_embeddings": 1024, "original_max_position_embeddings": 256}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"head_dim": 32}),
    ("qwen3", {"head_dim": 64}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}),
    ("mixtral", {"attention_bias": True}),
    ("dbrx", {}),
    ("dbrx", {"rope_theta": 50.0}),
    ("dbrx", {"clip_qkv": 0.5}),
    ("dbrx", {"ffn_act_fn": {"name": "gelu"}}),
]
WRONG = [  # or an error while loading, which no start may come to
    *[(family, {"rope_scaling": YARN}) for family in ("qwen2", "qwen3", "mixtral", "qwen3_moe")],  # N1
    *[(family, {"rope_scaling": kind}) for family in ("qwen2", "qwen3") for kind in (LLAMA3, LINEAR)],
    *[(family, {"rope_scaling": DYNAMIC, "max_position_embeddings": 32}) for family in ("llama", "qwen3")],
    ("llama", {"rope_scaling": LONG, "max_position_embeddings": LENGTH, "original_max_position_embeddings": 32}),
    ("qwen3", {"attention_bias": True}),  # N2
    ("qwen3_moe", {"attention_bias": True}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"mlp_only_layers": [0]}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
    *[(family, {"tie_word_embeddings": True}) for family in ("mixtral", "qwen3_moe")],
    *[(family, {"hidden_act": "gelu_pytorch_tanh"}) for family in ("mixtral", "qwen3_moe")],
    *[(family, {"mlp_bias": True}) for family in ("qwen2", "qwen3", "mistral")],
    *[(family, {"head_dim": 32}) for family in ("qwen2", "mixtral")],
    *[("dbrx", {"moe_normalize_expert_weights": order}) for order in (None, 2.0)],
    *[(family, WINDOW) for family in ("qwen2", "qwen3", "mixtral")],
]


def _named(value):
    return value if isinstance(value, str) else "_".join(f"{name}={entry}"[:40] for name, entry in value.items())


def _checkpoint(directory, family, entries, monkeypatch):
    if load_library().version < (since := MODELS_SINCE.get(family, OLDEST)):
        pytest.skip(f"it came with {since}")
    for name in ("mixtral", "qwen3_moe"):
        monkeypatch.setitem(tiny.CONFIGS, name, transformers.CONFIG_MAPPING[name])
    monkeypatch.setitem(tiny.CONFIGS, "dbrx", _dbrx)
    return make_checkpoint(directory, family, **{**BASES.get(family, {}), **entries})


def _dbrx(hidden_size, num_attention_heads, num_hidden_layers, num_key_value_heads, **entries):
    """Its config has names and sections of its own."""
    attention = {"kv_n_heads": num_key_value_heads, "clip_qkv": 8.0, "rope_theta": 500.0}
    experts = {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}}
    experts |= {"moe_normalize_expert_weights": 1.0}
    for section in (attention, experts):
        section.update({name: entries.pop(name) for name in list(entries) if name in section})
    for name in ("intermediate_size", "max_position_embeddings"):
        entries.pop(name)
    shape = {"d_model": hidden_size, "n_heads": num_attention_heads, "n_layers": num_hidden_layers, "max_seq_len": 512}
    return transformers.DbrxConfig(**shape, **entries, attn_config=attention, ffn_config=experts)


def _both(in_cpu_mode, checkpoint, reference=None, **override):
    """What two rows of different lengths generate: by the library, and by transformers (of `reference`)."""
    driver = Driver(*in_cpu_mode(checkpoint, LENGTH, **override))
    prompts = {"a": list(range(100, 160)), "b": list(range(20, 29))}
    for line, (name, prompt) in enumerate(prompts.items()):
        driver.add(name, prompt, [1 - line])
        driver.step(**{name: 0})
    for _ in range(7):
        driver.step(b=0, a=0)
    assert not driver.errors
    network = transformers.AutoModelForCausalLM.from_pretrained(reference or checkpoint, torch_dtype=torch.float32)
    expected = {}
    for name, prompt in prompts.items():
        ids = torch.tensor([prompt])
        made = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=8, max_length=len(prompt) + 8
        )
        expected[name] = made[0, len(prompt) :].tolist()
    return driver.tokens, expected


@pytest.mark.parametrize(("family", "entries"), RIGHT, ids=_named)
def test_entries_that_the_table_has_are_computed_as_transformers_does(
    in_cpu_mode, family, entries, tmp_path, monkeypatch
):
    tokens, expected = _both(in_cpu_mode, _checkpoint(tmp_path / "model", family, entries, monkeypatch))
    assert tokens == expected


@pytest.mark.parametrize(("family", "entries"), WRONG, ids=_named)
def test_entries_that_are_refused_go_wrong_in_the_library(in_cpu_mode, family, entries, tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path / "model", family, entries, monkeypatch)
    with pytest.raises(NeuronConfigError):
        in_cpu_mode(checkpoint, LENGTH)
    monkeypatch.setattr(checks, "check_entries", lambda *arguments: None)
    try:
        tokens, expected = _both(in_cpu_mode, checkpoint)
    except (RuntimeError, NotImplementedError, KeyError, ValueError):
        return
    assert tokens != expected


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
def test_fused_qkv_by_architecture_and_version(in_cpu_mode, family, tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path / "model", family, {}, monkeypatch)
    since = FUSED_QKV_SINCE.get(known_architecture(open_checkpoint(checkpoint).config), Version(0, 4))
    if since is not None and load_library().version >= since:
        tokens, expected = _both(in_cpu_mode, checkpoint, fused_qkv=True)
        assert tokens == expected
        return
    monkeypatch.setattr(checks, "check_entries", lambda *arguments: None)
    with pytest.raises(KeyError):
        in_cpu_mode(checkpoint, LENGTH, fused_qkv=True)


def test_gpt_oss_as_it_is_published(in_cpu_mode, tmp_path, monkeypatch):
    """Experts in mxfp4, which the library reads packed; transformers gets what they stand for."""
    if load_library().version < Version(0, 7):
        pytest.skip("it came with 0.7")
    unpacked = importlib.import_module("transformers.integrations.mxfp4").convert_moe_packed_tensors
    monkeypatch.setitem(tiny.CONFIGS, "gpt_oss", transformers.CONFIG_MAPPING["gpt_oss"])
    checkpoint = make_checkpoint(tmp_path / "model", "gpt_oss", **GPT_OSS)
    plain, packed, values = load_file(checkpoint / "model.safetensors"), {}, {}
    for name in [name for name in plain if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = plain.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 125, (experts, outputs, inputs // 32), dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values[name] = unpacked(blocks, scales, dtype=torch.float32).contiguous()
    whole = shutil.copytree(checkpoint, tmp_path / "whole")
    save_file(plain | values, whole / "model.safetensors", {"format": "pt"})
    save_file(plain | packed, checkpoint / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        tokens, expected = _both(in_cpu_mode, checkpoint, reference=whole)
    assert tokens == expected


def test_the_library_rotates_gemma_3s_full_layers_as_those_of_the_window():
    """Why Gemma3ForCausalLM is refused: the rotation of the first layer is handed on to all."""
    if load_library().version < Version(0, 9):
        pytest.skip("it came with 0.9")
    base = importlib.import_module(f"{ROOT}.models.model_base")
    source = inspect.getsource(base.NeuronBaseModel.get_model_output)
    assert "cos_cache, sin_cache = layer_outputs[2:4]" in source and "cos_cache=cos_cache" in source


def test_the_librarys_rotation_of_llama_4_is_the_one_that_is_taken():
    utils = importlib.import_module("neuronx_distributed.modules.attention.utils")
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_theta=500000.0, rope_scaling=LLAMA4_ROTATION
    )
    frequencies, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    theirs = utils.precompute_freqs_cis(128, 2, 500000.0, True)[1]
    torch.testing.assert_close(theirs, frequencies)
