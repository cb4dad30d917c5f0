"""What the scheduler knows of the KV store: prefixes kept outside the pool, and the copies between the two.

The store lies on the device side (host memory, files) and decides by itself what it keeps; here is a guess at what it
holds, right but for what it dropped a moment ago. A copy is ordered by a step and done before that step's forward,
saves first. A load goes into a block that is held by nothing but the load, and makes that block findable when it
succeeds: whoever asked for the prefix then finds it in the pool. A load that fails costs the prefix, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KVCopy = tuple[bytes, int]
"""A prefix's hash, and the block of the pool."""


class OffloadIndex:
    """Known prefixes, saves to be ordered and loads under way.

    saves_evicted, saves_computed: when a block is saved: as the pool takes it for something else; as it is computed.
    """

    __slots__ = ("_dropped", "_known", "_saves", "loading", "saves_computed", "saves_evicted")

    def __init__(self, *, saves_evicted: bool = False, saves_computed: bool = False) -> None:
        self.saves_evicted = saves_evicted
        self.saves_computed = saves_computed
        self.loading: dict[bytes, int] = {}
        self._known: set[bytes] = set()
        self._saves: dict[bytes, int] = {}
        self._dropped: set[bytes] = set()

    @property
    def enabled(self) -> bool:
        return self.saves_evicted or self.saves_computed

    @property
    def num_known(self) -> int:
        """Prefix blocks that the store is taken to hold."""
        return len(self._known)

    @property
    def has_saves(self) -> bool:
        """Whether a save is to be ordered by the next step."""
        return bool(self._saves)

    def learn(self, hashes: Iterable[bytes]) -> None:
        """The store holds these."""
        self._known.update(hashes)

    def forget(self, hashes: Iterable[bytes]) -> None:
        """The store holds these no longer."""
        self._known.difference_update(hashes)

    def reset(self) -> None:
        """The store is emptied. What is being loaded is loaded in vain."""
        self._known.clear()
        self._saves.clear()
        self._dropped.update(self.loading)

    def save(self, copies: Iterable[KVCopy]) -> None:
        """Have the next step save what the store does not hold."""
        for block_hash, block_id in copies:
            if block_hash not in self._known:
                self._known.add(block_hash)
                self._saves[block_hash] = block_id

    def take_saves(self) -> list[KVCopy]:
        """What a step is to save; each is ordered once."""
        saves = list(self._saves.items())
        self._saves.clear()
        return saves

    def stored_beginning(self, hashes: Sequence[bytes], most: int) -> list[bytes]:
        """The longest beginning of a chain that the store holds, `most` blocks of it."""
        stored: list[bytes] = []
        for block_hash in hashes:
            if block_hash not in self._known or len(stored) == most:
                break
            stored.append(block_hash)
        return stored

    def start_loads(self, copies: Iterable[KVCopy]) -> None:
        self.loading.update(copies)

    def finish_load(self, block_hash: bytes, failed: bool) -> bool:
        """End a load; whether its block now carries the prefix."""
        del self.loading[block_hash]
        if failed:
            self._known.discard(block_hash)
        if block_hash in self._dropped:
            self._dropped.remove(block_hash)
            return False
        return not failed
