"""The library itself, where it can be imported: its own objects take what we give them, and keep it; and in its CPU
mode, in which its modules run as they are, what comes out is what the cpu target says.

Nothing is compiled here. tests/hardware/ runs on a device.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
import transformers

from tests import tiny
from tests.neuron.configs import build
from tests.neuron.driver import Driver, load, resolved_config
from tests.neuronx.test_config import LLAMA
from tests.tiny import make_checkpoint
from vllm.neuron import host_platform, platform
from vllm.neuron.neuronx.config import build_inference_config
from vllm.neuron.neuronx.library import ROOT, load_library
from vllm.neuron.neuronx.model import NeuronxDeviceModel
from vllm.neuron.neuronx.registry import application_class
from vllm.neuron.neuronx.versions import Version

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
    from vllm.neuron.buckets import generate_buckets

    theirs = importlib.import_module(f"{ROOT}.modules.autobucketing").generate_buckets
    assert generate_buckets(128, longest) == list(theirs(128, longest))


def test_sampling_rows_are_valid(made):
    import numpy as np

    from tests.neuronx.test_inputs import LIMITS
    from vllm.neuron.neuronx.inputs import sampling_rows

    rows = sampling_rows(np.asarray([(0, 0.9, 0.7), (5, 1.0, 0.0), (-1, 1.0, 1.0)], np.float32), LIMITS)
    sampling = importlib.import_module(f"{ROOT}.modules.generation.sampling")
    sampling.validate_sampling_params(torch.from_numpy(rows), made.neuron_config.on_device_sampling_config)


@pytest.fixture
def in_cpu_mode(tmp_path, monkeypatch):
    """in_cpu_mode(checkpoint, **override): (config, device), with the library's modules in place of compiled graphs."""
    library = load_library()
    if library.version < Version(0, 5):
        pytest.skip(f"the CPU mode of {library.version} runs prompts and decodes with one batch size")
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: True)

    def load_in_cpu_mode(checkpoint, **override):
        config = resolved_config(checkpoint, "neuronx", max_num_seqs=2, max_model_len=64, override=override)
        application = application_class(config.model_config.hf_config, library.model_types)
        built = build_inference_config(config, library, application)
        built.neuron_config.on_cpu, built.neuron_config.attn_kernel_enabled = True, False
        made = application(config.model_config.model_path, built)
        if not hasattr(made, "_get_captured_tensors_offset"):
            made._get_captured_tensors_offset = lambda: 0  # called from 0.7 on, and missing in models of text
        made.to_cpu()
        return config, NeuronxDeviceModel(config, made, tmp_path)

    yield load_in_cpu_mode
    importlib.import_module("neuronx_distributed.parallel_layers.parallel_state").destroy_model_parallel()
    torch.distributed.destroy_process_group()


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


def test_experts_in_the_librarys_cpu_mode_are_transformers(in_cpu_mode, tmp_path, monkeypatch):
    """Mixtral, which no other target here runs."""
    monkeypatch.setitem(tiny.CONFIGS, "mixtral", transformers.MixtralConfig)
    entries = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    checkpoint = make_checkpoint(tmp_path / "model", "mixtral", **entries)
    driver = Driver(*in_cpu_mode(checkpoint))
    prompts = {"a": list(range(20, 29)), "b": list(range(100, 131))}
    for line, (name, prompt) in enumerate(prompts.items()):
        driver.add(name, prompt, [1 - line])
        driver.step(**{name: 0})
    for _ in range(5):
        driver.step(b=0, a=0)
    network = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32)
    for name, prompt in prompts.items():
        ids = torch.tensor([prompt])
        made = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=6, max_length=len(prompt) + 6
        )
        assert driver.tokens[name] == made[0, len(prompt) :].tolist()
