"""KV that moves: the orders that copy blocks between the pool and the KV store, and the requests that wait for them.

The store lies on the device side (host memory, files) and decides by itself what it keeps; this index follows what the
store holds, and is wrong only about blocks that it dropped a moment ago. Each order has a ticket. A step carries
orders down (`SchedulerOutput.kv_orders`); the result of that step or of any later one says how a ticket ended
(`ModelRunnerOutput.kv_done`), so that no step has to wait for a copy.

A save reads its block before the forward of the step that orders it. A load fills its block at any time until it is
done: the block is held by its ticket for that long, whatever becomes of the request that wanted it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm.core.block_pool import BlockPool
from vllm.core.contract import KVOperation, KVOrder, ModelRunnerOutput
from vllm.core.request import Request, RequestStatus


@dataclass(slots=True)
class _Load:
    """A block that is being filled, or will be."""

    block_id: int
    key: bytes
    request: Request
    """Whose prompt it belongs to. The request may have ended meanwhile."""
    index: int
    """Which block of that prompt it is."""
    dropped: bool = False
    """The store was emptied after the load was asked for: what it brings is not used."""


class KVTraffic:
    """Prefixes known to lie in the store, orders for the next step, loads under way and the requests they are for."""

    __slots__ = (
        "_known",
        "_loading_keys",
        "_loads",
        "_max_loads",
        "_next_ticket",
        "_pool",
        "_saves",
        "_unordered",
        "requests",
        "saves_computed",
        "saves_evicted",
    )

    def __init__(
        self, pool: BlockPool, *, saves_evicted: bool = False, saves_computed: bool = False, max_loads: int = 1
    ) -> None:
        """saves_evicted: blocks are saved as the pool gives them to somebody else (host memory).
        saves_computed: blocks are saved as they are computed (files).
        max_loads: how many loads are under way at once."""
        self.saves_evicted = saves_evicted
        self.saves_computed = saves_computed
        self.requests: dict[str, Request] = {}
        """Admitted requests that wait for KV, by id, in order of their admission."""
        self._pool = pool
        self._max_loads = max_loads
        self._known: set[bytes] = set()
        self._saves: dict[bytes, int] = {}
        self._loads: dict[int, _Load] = {}
        self._loading_keys: set[bytes] = set()
        self._unordered: list[int] = []
        self._next_ticket = 0

    @property
    def enabled(self) -> bool:
        return self.saves_evicted or self.saves_computed

    @property
    def num_known(self) -> int:
        """Prefix blocks that the store is taken to hold."""
        return len(self._known)

    @property
    def has_saves(self) -> bool:
        """Whether the next step has to order a save."""
        return bool(self._saves)

    @property
    def has_loads(self) -> bool:
        """Whether a load is under way, or waits to be ordered."""
        return bool(self._loads)

    def held_blocks(self) -> list[int]:
        """Blocks that tickets hold."""
        return [load.block_id for load in self._loads.values()]

    def is_loading(self, key: bytes) -> bool:
        return key in self._loading_keys

    def learn(self, keys: Iterable[bytes]) -> None:
        """The store holds these."""
        self._known.update(keys)

    def reset(self) -> None:
        """The store is emptied. Loads under way end, and what they bring is not used."""
        self._known.clear()
        self._saves.clear()
        for load in self._loads.values():
            load.dropped = True

    def save(self, copies: Iterable[tuple[bytes, int]]) -> None:
        """Have the next step save (key, block) unless the store holds the key."""
        for key, block_id in copies:
            if key not in self._known:
                self._known.add(key)
                self._saves[key] = block_id

    def stored_beginning(self, keys: Sequence[bytes]) -> list[bytes]:
        """The longest beginning of a chain that the store holds."""
        stored: list[bytes] = []
        for key in keys:
            if key not in self._known:
                break
            stored.append(key)
        return stored

    def load(self, request: Request, keys: Sequence[bytes]) -> None:
        """Have the blocks that follow those of an admitted request loaded; until then the request waits here."""
        request.status = RequestStatus.WAITING_FOR_KV
        block_ids = self._pool.allocate(len(keys))
        self._pool.hold(block_ids)
        for index, (key, block_id) in enumerate(zip(keys, block_ids, strict=True), len(request.block_ids)):
            ticket = self._take_ticket()
            self._loads[ticket] = _Load(block_id, key, request, index)
            self._unordered.append(ticket)
        self._loading_keys.update(keys)
        request.block_ids = request.block_ids + block_ids
        request.num_kv_loads, request.num_loaded_blocks = len(keys), len(request.block_ids)
        self.requests[request.req_id] = request

    def loaded_requests(self) -> list[Request]:
        """Requests whose loads are done."""
        return [request for request in self.requests.values() if not request.num_kv_loads]

    def take_orders(self) -> list[KVOrder]:
        """What a step is to copy, saves first."""
        orders = [KVOrder(self._take_ticket(), KVOperation.SAVE, block, key) for key, block in self._saves.items()]
        self._saves.clear()
        num_under_way = len(self._loads) - len(self._unordered)
        ordered = self._unordered[: max(self._max_loads - num_under_way, 0)]
        del self._unordered[: len(ordered)]
        for ticket in ordered:
            load = self._loads[ticket]
            orders.append(KVOrder(ticket, KVOperation.LOAD, load.block_id, load.key))
        return orders

    def update(self, result: ModelRunnerOutput) -> None:
        """Take in how tickets ended, and what the store dropped."""
        self._known.difference_update(result.kv_forgotten)
        for ticket, ok in result.kv_done.items():
            if (load := self._loads.pop(ticket, None)) is not None:
                self._finish(load, ok)

    def _finish(self, load: _Load, ok: bool) -> None:
        """Let go of a loaded block.

        A request that still waits makes its blocks findable when the last one is done: it computes those behind a
        failed one again, and nobody else may read them meanwhile.
        """
        self._loading_keys.discard(load.key)
        if not ok:
            self._known.discard(load.key)
        is_right, request = ok and not load.dropped, load.request
        if request.status is RequestStatus.WAITING_FOR_KV:
            request.num_kv_loads -= 1
            if not is_right:
                request.num_loaded_blocks = min(request.num_loaded_blocks, load.index)
            if not request.num_kv_loads:
                self._take_loaded(request)
        elif is_right:
            self._pool.cache_full_blocks([load.block_id], [load.key])
        self._pool.free([load.block_id])

    def _take_loaded(self, request: Request) -> None:
        num_local, num_blocks, size = request.num_hashed_blocks, request.num_loaded_blocks, self._pool.block_size
        hashes = request.block_hashes(num_blocks, size)
        self._pool.cache_full_blocks(request.block_ids[num_local:num_blocks], hashes[num_local:])
        request.num_hashed_blocks = num_blocks
        request.num_external_tokens = request.cached_tokens(num_blocks, size) - request.cached_tokens(num_local, size)

    def _take_ticket(self) -> int:
        self._next_ticket += 1
        return self._next_ticket
