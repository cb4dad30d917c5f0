"""The stand-in library, installed in the version a test asks for."""

from __future__ import annotations

import os

import pytest
import torch

from tests.neuronx import standin
from vllm.neuron import platform

RUNTIME_VARIABLES = (
    "NEURON_LOGICAL_NC_CONFIG",
    "NEURON_RT_VIRTUAL_CORE_SIZE",
    "NEURON_RT_NUM_CORES",
    "NEURON_RT_VISIBLE_CORES",
    "NEURON_PLATFORM_TARGET_OVERRIDE",
    "NEURON_ON_DEVICE_SAMPLING_DISABLED",
    "XLA_HANDLE_SPECIAL_SCALAR",
    "UNSAFE_FP8FNCAST",
    "STANDIN_COMPILER_FAILURES",
)

torch.set_num_threads(1)


@pytest.fixture
def clean_environment(monkeypatch):
    """None of the runtime's variables is set, and what is set here does not outlive the test."""
    for name in RUNTIME_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "_has_device", lambda: True)


@pytest.fixture(params=standin.VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def library(version, clean_environment, tmp_path):
    """The stand-in, importable as `version`."""
    with standin.installed(version, tmp_path / "site"):
        yield version


@pytest.fixture
def newest(clean_environment, tmp_path):
    """The stand-in in its newest version."""
    with standin.installed(standin.VERSIONS[-1], tmp_path / "site"):
        yield standin.VERSIONS[-1]


def targets(*modes: str) -> list[tuple[str, str]]:
    return [(version, mode) for version in standin.VERSIONS for mode in modes]


@pytest.fixture(scope="module", params=targets("device", "host"), ids="-".join)
def target(request, tiny_llama, tmp_path_factory):
    """(config, device): a loaded stand-in of each version, sampling on the device and on the host."""
    from tests.neuron.driver import load, resolved_config

    found, mode = request.param
    patch = pytest.MonkeyPatch()
    for name in RUNTIME_VARIABLES:
        patch.setenv(name, "")
        patch.delenv(name)
    patch.setattr(platform, "_has_device", lambda: True)
    if mode == "host":
        os.environ["NEURON_ON_DEVICE_SAMPLING_DISABLED"] = "1"
    with standin.installed(found, tmp_path_factory.mktemp("site")):
        config = resolved_config(tiny_llama, "neuronx")
        device = load(config, tmp_path_factory.mktemp("artifact") / "compiled")
        yield config, device
        device.shutdown()
    patch.undo()
