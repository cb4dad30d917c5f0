"""The library itself, where it can be imported: its own objects take what we give them, and keep it.

Nothing is compiled here. tests/hardware/ runs on a device.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from tests.neuron.configs import build
from tests.neuronx.test_config import LLAMA
from vllm.neuron import platform
from vllm.neuron.neuronx.config import build_inference_config
from vllm.neuron.neuronx.library import ROOT, load_library
from vllm.neuron.neuronx.registry import application_class

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(ROOT) is None,
    reason="neuronx-distributed-inference is not installed here (AWS's own package index has it, for Neuron instances)",
)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    monkeypatch.setattr(platform, "_has_device", lambda: True)
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
    import torch

    from tests.neuronx.test_inputs import LIMITS
    from vllm.neuron.neuronx.inputs import sampling_rows

    rows = sampling_rows(np.asarray([(0, 0.9, 0.7), (5, 1.0, 0.0), (-1, 1.0, 1.0)], np.float32), LIMITS)
    sampling = importlib.import_module(f"{ROOT}.modules.generation.sampling")
    sampling.validate_sampling_params(torch.from_numpy(rows), made.neuron_config.on_device_sampling_config)
