"""The stand-in's version is what its package metadata says, as with the library itself."""

from importlib.metadata import version

import torch_neuronx  # noqa: F401 - the library, too, opens the runtime's package first

__version__ = version("neuronx-distributed-inference")


def at_least(major: int, minor: int) -> bool:
    return tuple(map(int, __version__.split(".")[:2])) >= (major, minor)
