"""The KV store: prefix blocks kept outside the KV cache, in host memory and in files.

A block is its device's plain bytes, found by the hash of its prefix. Host memory takes what the KV cache pushed out and
is bounded, the least recently used block going first; files take every block that was computed, and outlive the
process (`kv_files`). The scheduler orders copies with a step. A save is read from the device before the forward of that
step; a load arrives when its tier has it, and is written to the device before the forward of that step or a later one.
A copy that fails costs its prefix and a line in the log, never a request.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vllm.artifacts.find import artifact_key
from vllm.artifacts.manifest import canonical_json
from vllm.config import VllmConfig
from vllm.core.contract import KVOperation, KVOrder, ModelRunnerOutput
from vllm.device.model import DeviceModel
from vllm.device.model_input import ByteArray
from vllm.kv.files import KVFiles
from vllm.logger import RecurringFault, init_logger
from vllm.sizes import GIB
from vllm.version import __version__

logger = init_logger(__name__)

DEFAULT_DIR_GIB = 4.0


class Tier(Protocol):
    """A place where blocks are kept. Copies are started here, and told when they are done.

    A tier that works on a thread of its own sets the event that it was made with whenever `poll` has news.
    """

    def save(self, key: bytes, data: ByteArray) -> None:
        """Keep a copy of `data`, uint8 [kv_block_bytes]. `take_forgotten` tells what could not be kept."""
        ...

    def start(self, ticket: int, key: bytes, out: ByteArray) -> None:
        """Begin to fill `out`, uint8 [kv_block_bytes], which belongs to the tier until `poll` tells the ticket."""
        ...

    def poll(self) -> dict[int, bool]:
        """Tickets that ended since the last call: False if the block is not here, or not whole."""
        ...

    def __contains__(self, key: object) -> bool: ...

    def hashes(self) -> list[bytes]:
        """What is here, least recently used first."""
        ...

    def take_forgotten(self) -> list[bytes]:
        """Blocks that were saved, and are here no longer, since the last call."""
        ...

    def clear(self) -> None: ...

    def stats(self) -> dict[str, int]: ...

    def close(self) -> None:
        """End all that was started."""
        ...


class HostMemory:
    """num_blocks blocks of block_bytes bytes. Memory is taken from the system as blocks arrive; copies end at once."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self._blocks: ByteArray = np.empty((num_blocks, block_bytes), np.uint8)
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_blocks))
        self._forgotten: list[bytes] = []
        self._done: dict[int, bool] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def save(self, key: bytes, data: ByteArray) -> None:
        if key not in self._slots:
            self._slots[key] = self._free.pop() if self._free else self._make_room()
            self._blocks[self._slots[key]] = data
        self._slots.move_to_end(key)

    def start(self, ticket: int, key: bytes, out: ByteArray) -> None:
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            out[:] = self._blocks[slot]
        self._done[ticket] = slot is not None

    def poll(self) -> dict[int, bool]:
        done, self._done = self._done, {}
        return done

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
        key, slot = self._slots.popitem(last=False)
        self._forgotten.append(key)
        return slot


@dataclass(slots=True)
class _Load:
    """A load under way."""

    order: KVOrder
    buffer: ByteArray
    """uint8 [1, kv_block_bytes]."""
    tiers: list[Tier]
    """Where it is tried next, should the present tier fail."""


class KVStore:
    """Copies between a device's KV cache and the tiers, fastest first."""

    def __init__(self, device: DeviceModel, tiers: list[Tier], news: threading.Event | None = None) -> None:
        """news: set by tiers when a copy has ended."""
        self.device = device
        self.tiers = tiers
        self._news = news or threading.Event()
        self._loads: dict[int, _Load] = {}
        self._spare = [self._new_buffer()]
        self._num_saved = self._num_loaded = self._num_failed = 0
        self._unsaved = RecurringFault(logger, "a cached prefix block could not be saved")
        self._unloaded = RecurringFault(logger, "a cached prefix block could not be loaded")

    def start(self, orders: Iterable[KVOrder], result: ModelRunnerOutput) -> None:
        """Begin the copies of a step, before its forward. Saves are read from the device now."""
        for order in orders:
            if order.operation is KVOperation.SAVE:
                result.kv_done[order.ticket] = self._save(order, result)
            else:
                buffer = self._spare.pop() if self._spare else self._new_buffer()
                tiers = [tier for tier in self.tiers if order.key in tier]
                self._loads[order.ticket] = load = _Load(order, buffer, tiers)
                if not self._try_next(load):
                    self._end_load(load, False, result)

    def poll(self, result: ModelRunnerOutput, seconds: float = 0.0) -> None:
        """Put what arrived into the KV cache, before a forward. Where nothing did, wait `seconds` for it."""
        self._news.clear()
        if not self._take_done(result) and self._loads and not result.kv_done and seconds:
            self._news.wait(seconds)
            self._take_done(result)
        for tier in self.tiers:
            result.kv_forgotten += [key for key in tier.take_forgotten() if not any(key in t for t in self.tiers)]

    def hashes(self) -> list[bytes]:
        return list(dict.fromkeys(key for tier in self.tiers for key in tier.hashes()))

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

    def _new_buffer(self) -> ByteArray:
        return np.empty((1, self.device.kv_block_bytes), np.uint8)

    def _save(self, order: KVOrder, result: ModelRunnerOutput) -> bool:
        buffer = self._spare[-1] if self._spare else self._new_buffer()
        try:
            self.device.read_kv([order.block_id], buffer)
            for tier in self.tiers:
                tier.save(order.key, buffer[0])
        except Exception as error:
            self._unsaved.note(error, exc_info=True)
            result.kv_forgotten.append(order.key)
            return False
        self._num_saved += 1
        return True

    def _take_done(self, result: ModelRunnerOutput) -> bool:
        """Whether a load ended."""
        ended = False
        for tier in self.tiers:
            for ticket, ok in tier.poll().items():
                load = self._loads[ticket]
                if ok or not self._try_next(load):
                    self._end_load(load, ok, result)
                    ended = True
        return ended

    def _try_next(self, load: _Load) -> bool:
        """Start a load in the next tier; False if there is none."""
        if not load.tiers:
            return False
        load.tiers.pop(0).start(load.order.ticket, load.order.key, load.buffer[0])
        return True

    def _end_load(self, load: _Load, ok: bool, result: ModelRunnerOutput) -> None:
        ticket, _, block_id, _ = load.order
        del self._loads[ticket]
        if ok:
            try:
                self.device.write_kv([block_id], load.buffer)
            except Exception as error:
                self._unloaded.note(error, exc_info=True)
                ok = False
        self._spare.append(load.buffer)
        self._num_loaded += ok
        self._num_failed += not ok
        result.kv_done[ticket] = ok


def open_store(config: VllmConfig, device: DeviceModel) -> KVStore | None:
    """The store that a resolved config asks for; None for none.

    Raises ValueError where it would hold nothing, OSError or PermissionError where its directory cannot be used.
    """
    cache, block_bytes = config.cache_config, device.kv_block_bytes
    tiers: list[Tier] = []
    news = threading.Event()
    if cache.kv_offloading_size is not None:
        tiers.append(HostMemory(_num_blocks("kv_offloading_size", cache.kv_offloading_size, block_bytes), block_bytes))
    if cache.kv_offloading_dir is not None:
        gib = DEFAULT_DIR_GIB if cache.kv_offloading_dir_size is None else cache.kv_offloading_dir_size
        _num_blocks("kv_offloading_dir_size", gib, block_bytes)
        identity = kv_identity(config, device)
        tiers.append(KVFiles(cache.kv_offloading_dir, identity, block_bytes, int(gib * GIB), news))
    return KVStore(device, tiers, news) if tiers else None


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
