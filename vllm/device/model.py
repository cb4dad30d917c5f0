"""`DeviceModel`: the interface of a model on a device.

A target turns a checkpoint into an artifact directory (`compile`), opens one (`load`) and runs forwards. It knows
nothing of requests. The class of a target is imported by name, when it is first asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.device.model_input import ByteArray, ModelInput, ModelOutput
from vllm.settings.target import find_target, imported

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is finished, 0 to 1."""


class DeviceLost(Exception):
    """The device can run nothing any more. Any other exception of a forward is held to be its input's fault."""


class DeviceModel(ABC):
    """A model on a device: weights, programs for every bucket, and the KV cache.

    kv_block_bytes: what one KV block takes in `read_kv` and `write_kv`; 0 where blocks cannot be copied.
    """

    capabilities: Capabilities
    kv_block_bytes: int = 0

    @classmethod
    @abstractmethod
    def artifact_key(cls, config: VllmConfig) -> dict[str, Any]:
        """What of this target shapes an artifact beyond checkpoint and resolved config: compiler, layout."""

    @classmethod
    @abstractmethod
    def compile(cls, config: VllmConfig, directory: Path, progress: Progress) -> None:
        """Write a complete artifact into `directory` (empty, private to this call). Leaves publishing to the caller."""

    @classmethod  # noqa: B027 (a target that knows no bound has nothing to check)
    def check_fits(cls, config: VllmConfig) -> None:
        """Raise ValueError if `load` would take more memory than there is. Reads no weight. `load` checks it too."""

    @classmethod
    def artifact_bytes(cls, config: VllmConfig) -> int:
        """About how many bytes `compile` will write; 0 where that is not known before. Reads no weight."""
        return 0

    @classmethod
    @abstractmethod
    def load(cls, config: VllmConfig, directory: Path) -> DeviceModel:
        """Open an artifact written by `compile` for an equal config. Never writes to or deletes from it.

        Raises DamagedArtifact for one that holds what cannot be run; it is then set aside and compiled anew.
        """

    @abstractmethod
    def forward(self, model_input: ModelInput) -> ModelOutput:
        """Run one program. Reads and writes the KV cache at the rows, blocks and slots given."""

    def row_faults(self, model_input: ModelInput) -> dict[int, str]:
        """Rows by index that must not run, and why: each ends its request alone, and the others run without it."""
        return {}

    def read_kv(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy whole KV blocks to `out`, uint8 [blocks, kv_block_bytes]. Never while a forward runs."""
        raise NotImplementedError("this target's KV blocks cannot be copied")

    def write_kv(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Copy what `read_kv` gave, here or on an equal device, into KV blocks."""
        raise NotImplementedError("this target's KV blocks cannot be copied")

    def kv_identity(self) -> dict[str, Any]:
        """What the bytes of a KV block depend on beyond the artifact's key: the arithmetic in use."""
        return {}

    def memory(self) -> dict[str, int]:
        """Bytes by kind: weights, kv_cache, arena."""
        return {}

    @abstractmethod
    def shutdown(self) -> None:
        """Release the device."""


def resolve_target(name: str) -> type[DeviceModel]:
    """The class of a target. Raises ValueError for an unknown name, listing the known ones."""
    return imported(find_target(name).device_model)  # type: ignore[no-any-return]
