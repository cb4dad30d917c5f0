"""Neuron hardware of this machine, and the platform that is compiled for: as a user says, else this instance's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm import envs
from vllm.settings.parallel import INSTANCE_DEGREES

PRODUCT_NAME = Path("/sys/devices/virtual/dmi/id/product_name")
"""Where an EC2 instance says its type, such as trn1.32xlarge."""

_set_by_library: list[str] = []


def has_neuron_device() -> bool:
    """Whether the kernel's driver shows a Neuron device."""
    return any(Path("/dev").glob("neuron[0-9]*"))


@contextmanager
def library_setting_the_platform() -> Iterator[None]:
    """Around the library's constructors, which set NEURON_PLATFORM_TARGET_OVERRIDE where nobody has."""
    before = envs.NEURON_PLATFORM_TARGET_OVERRIDE
    yield
    if not before and envs.NEURON_PLATFORM_TARGET_OVERRIDE:
        _set_by_library[:] = [envs.NEURON_PLATFORM_TARGET_OVERRIDE]


def platform_name() -> str:
    """The platform to compile for: what the user set, else this instance's family; "" where that is not known.

    The same before and after the library was loaded, since artifacts are known by it.
    """
    asked = str(envs.NEURON_PLATFORM_TARGET_OVERRIDE)
    if asked and asked not in _set_by_library:
        return asked
    try:
        instance = PRODUCT_NAME.read_text().strip().partition(".")[0]
    except OSError:
        return ""
    return next((family for family in INSTANCE_DEGREES if instance.startswith(family)), "")
