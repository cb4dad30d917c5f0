"""The stand-in library, installed in the version a test asks for."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tests.neuronx import standin
from vllm.settings import host_platform

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


def clean(patch):
    """None of the runtime's variables is set, what is set from here on ends with `patch`, and there is a device."""
    for name in RUNTIME_VARIABLES:
        patch.setenv(name, "")
        patch.delenv(name)
    patch.setattr(host_platform, "has_neuron_device", lambda: True)
    patch.setattr(host_platform, "_set_by_library", [])


@contextlib.contextmanager
def on_a_device(version, site):
    """The stand-in in a version, in a clean environment; yields the patch. For fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch, standin.installed(version, site):
        clean(patch)
        yield patch


@pytest.fixture
def clean_environment(monkeypatch):
    clean(monkeypatch)


@pytest.fixture(scope="session")
def llama4(tmp_path_factory):
    """A tiny Llama 4 with images."""
    from tests.neuronx import images

    return images.make_llama4(tmp_path_factory.mktemp("llama4") / "model")


@pytest.fixture(scope="session")
def llama4_reference(llama4):
    from tests.neuronx import images

    return images.Reference(llama4)


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
    with on_a_device(found, tmp_path_factory.mktemp("site")) as patch:
        if mode == "host":
            patch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
        config = resolved_config(tiny_llama, "neuronx")
        device = load(config, tmp_path_factory.mktemp("artifact") / "compiled")
        yield config, device
        device.shutdown()
