"""The KV store: prefix blocks kept outside the KV cache, in host memory and in files.

A block is its device's plain bytes, found by the hash of its prefix. Host memory takes what the KV cache pushed out and
is bounded, the least recently used block going first; files take every block that was computed, and outlive the
process (`kv_files`). The scheduler orders copies with a step; they are made here, before the step's forward. What goes
wrong with a copy costs that prefix and a line in the log, never a request.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from vllm.config import VllmConfig
from vllm.core.contract import ModelRunnerOutput, SchedulerOutput
from vllm.logger import RecurringFault, init_logger
from vllm.neuron.artifact_manifest import canonical_json
from vllm.neuron.artifacts import artifact_key
from vllm.neuron.device import DeviceModel
from vllm.neuron.kv_files import KVFiles
from vllm.neuron.model_input import ByteArray
from vllm.version import __version__

logger = init_logger(__name__)

GIB = 2**30
DEFAULT_DIR_GIB = 4.0


class Tier(Protocol):
    """A place where blocks are kept."""

    def save(self, block_hash: bytes, data: ByteArray) -> None:
        """Keep a copy of `data`, uint8 [kv_block_bytes]. What cannot be kept is told by `take_forgotten`."""
        ...

    def load(self, block_hash: bytes, out: ByteArray) -> bool:
        """Fill `out`; False if the block is not here, or not whole."""
        ...

    def __contains__(self, block_hash: object) -> bool: ...

    def hashes(self) -> list[bytes]:
        """What is here, least recently used first."""
        ...

    def take_forgotten(self) -> list[bytes]:
        """Blocks that were saved, and are here no longer, since the last call."""
        ...

    def clear(self) -> None: ...

    def stats(self) -> dict[str, int]: ...

    def close(self) -> None: ...


class HostMemory:
    """num_blocks blocks of block_bytes bytes. Memory is taken from the system as blocks arrive."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self._blocks: ByteArray = np.empty((num_blocks, block_bytes), np.uint8)
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_blocks))
        self._forgotten: list[bytes] = []

    def __contains__(self, block_hash: object) -> bool:
        return block_hash in self._slots

    def save(self, block_hash: bytes, data: ByteArray) -> None:
        if block_hash not in self._slots:
            self._slots[block_hash] = self._free.pop() if self._free else self._make_room()
            self._blocks[self._slots[block_hash]] = data
        self._slots.move_to_end(block_hash)

    def load(self, block_hash: bytes, out: ByteArray) -> bool:
        slot = self._slots.get(block_hash)
        if slot is None:
            return False
        self._slots.move_to_end(block_hash)
        out[:] = self._blocks[slot]
        return True

    def hashes(self) -> list[bytes]:
        return list(self._slots)

    def take_forgotten(self) -> list[bytes]:
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def clear(self) -> None:
        self._free += self._slots.values()
        self._slots.clear()

    def stats(self) -> dict[str, int]:
        return {"host_blocks": len(self._slots), "host_bytes": len(self._slots) * self._blocks.shape[1]}

    def close(self) -> None:
        self.clear()

    def _make_room(self) -> int:
        block_hash, slot = self._slots.popitem(last=False)
        self._forgotten.append(block_hash)
        return slot


class KVStore:
    """Copies between a device's KV cache and the tiers, fastest first."""

    def __init__(self, device: DeviceModel, tiers: list[Tier]) -> None:
        self.device = device
        self.tiers = tiers
        self._buffer: ByteArray = np.empty((1, device.kv_block_bytes), np.uint8)
        self._num_saved = self._num_loaded = self._num_failed = 0
        self._unsaved = RecurringFault(logger, "a cached prefix block could not be saved")
        self._unloaded = RecurringFault(logger, "a cached prefix block could not be loaded")

    def copy(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Make the copies of a step: all saves, then all loads. The result says what did not work."""
        result = ModelRunnerOutput()
        for block_hash, block_id in step.kv_saves:
            self._save(block_hash, block_id, result)
        for block_hash, block_id in step.kv_loads:
            if not self._load(block_hash, block_id):
                self._num_failed += 1
                result.kv_not_loaded.append(block_hash)
        for tier in self.tiers:
            result.kv_forgotten += [
                block_hash for block_hash in tier.take_forgotten() if not any(block_hash in t for t in self.tiers)
            ]
        return result

    def hashes(self) -> list[bytes]:
        return list(dict.fromkeys(block_hash for tier in self.tiers for block_hash in tier.hashes()))

    def clear(self) -> None:
        for tier in self.tiers:
            tier.clear()

    def stats(self) -> dict[str, int]:
        """Blocks and bytes by tier; blocks saved, loaded, and lost on the way."""
        counts = {"saved_blocks": self._num_saved, "loaded_blocks": self._num_loaded, "failed_loads": self._num_failed}
        return {**counts, **{name: value for tier in self.tiers for name, value in tier.stats().items()}}

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()

    def _save(self, block_hash: bytes, block_id: int, result: ModelRunnerOutput) -> None:
        try:
            self.device.read_kv([block_id], self._buffer)
            for tier in self.tiers:
                tier.save(block_hash, self._buffer[0])
            self._num_saved += 1
        except Exception as error:
            self._unsaved.note(error, exc_info=True)
            result.kv_forgotten.append(block_hash)

    def _load(self, block_hash: bytes, block_id: int) -> bool:
        try:
            if not any(tier.load(block_hash, self._buffer[0]) for tier in self.tiers):
                return False
            self.device.write_kv([block_id], self._buffer)
        except Exception as error:
            self._unloaded.note(error, exc_info=True)
            return False
        self._num_loaded += 1
        return True


def open_store(config: VllmConfig, device: DeviceModel) -> KVStore | None:
    """The store that a resolved config asks for; None for none.

    Raises ValueError where it would hold nothing, OSError or PermissionError where its directory cannot be used.
    """
    cache, block_bytes = config.cache_config, device.kv_block_bytes
    tiers: list[Tier] = []
    if cache.kv_offloading_size is not None:
        tiers.append(HostMemory(_num_blocks("kv_offloading_size", cache.kv_offloading_size, block_bytes), block_bytes))
    if cache.kv_offloading_dir is not None:
        gib = DEFAULT_DIR_GIB if cache.kv_offloading_dir_size is None else cache.kv_offloading_dir_size
        _num_blocks("kv_offloading_dir_size", gib, block_bytes)
        tiers.append(KVFiles(cache.kv_offloading_dir, kv_identity(config, device), block_bytes, int(gib * GIB)))
    return KVStore(device, tiers) if tiers else None


def _num_blocks(name: str, gib: float, block_bytes: int) -> int:
    count = int(gib * GIB) // block_bytes
    if count < 1:
        raise ValueError(f"{name}={gib} GiB holds no KV block: one takes {block_bytes} bytes")
    return count


def kv_identity(config: VllmConfig, device: DeviceModel) -> str:
    """SHA-256, in hexadecimal, of all that a block's bytes depend on besides its tokens."""
    key: dict[str, Any] = artifact_key(config, type(device))
    for shape in ("buckets", "neuron_config"):
        del key[shape]
    key["kv_cache"] = {"block_size": config.cache_config.block_size, "block_bytes": device.kv_block_bytes}
    key["max_model_len"] = config.model_config.max_model_len
    key |= {"device": device.kv_identity(), "version": __version__}
    key["compiler"] = {name: value for name, value in key["compiler"].items() if name != "mixed_tokens"}
    return hashlib.sha256(canonical_json(key).encode()).hexdigest()
