"""KV blocks: who holds them, and which prefix they carry.

A block is an id in 0 ... num_blocks - 1; there is no reserved block. It is held by `refs[id]` requests. A block that
nobody holds is free, and may still carry the KV of a prefix, by whose hash it is found until it is used for something
else. Free blocks that carry nothing are used first, then the least recently used prefix, last block before first.

Blocks are promised before they are taken: a request is admitted against `num_available`, and what it was promised stays
out of everyone else's reach until it is allocated or withdrawn. So an allocation within a promise cannot fail.

A block's hash chains over all tokens before it: H(block i) = SHA-256(H(block i - 1), tokens of block i), and the chain
starts from what else the KV depends on (adapter, salt, images). Equal hashes mean equal KV.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class IntegrityError(RuntimeError):
    """Books that do not balance: a leaked block, row or queue entry."""


def root_hash(lora_id: int, cache_salt: str | None, image_hashes: Sequence[str] = ()) -> bytes:
    """Where the hash chain of a request's blocks starts.

    image_hashes: one of each image's content, in the order in which the prompt shows them. Placeholder tokens of
    different images are alike, so prompts with different images share nothing, not even the text before them.
    """
    salt = b"" if cache_salt is None else b"salt:" + cache_salt.encode(errors="surrogatepass")
    root = hashlib.sha256(lora_id.to_bytes(8, "little", signed=True) + salt).digest()
    for image_hash in image_hashes:
        root = hashlib.sha256(root + b"image:" + image_hash.encode()).digest()
    return root


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block that follows the block (or root) of hash `parent`."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


class BlockPool:
    """num_blocks blocks of block_size tokens. All operations are O(1) a block.

    tells_evicted: `take_evicted` is asked for the prefixes that gave way.
    """

    __slots__ = (
        "_by_hash",
        "_evicted",
        "_free",
        "_hashes",
        "block_size",
        "num_blocks",
        "num_promised",
        "refs",
        "tells_evicted",
    )

    def __init__(self, num_blocks: int, block_size: int, *, tells_evicted: bool = False) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a KV pool of {num_blocks} blocks of {block_size} tokens: both must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_promised = 0
        self.refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self.tells_evicted = tells_evicted
        self._evicted: list[tuple[bytes, int]] = []

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, promised or not."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that may still be promised."""
        return len(self._free) - self.num_promised

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds."""
        return 1.0 - len(self._free) / self.num_blocks

    @property
    def num_cached(self) -> int:
        """Blocks found by the hash of a prefix."""
        return len(self._by_hash)

    def promise(self, count: int) -> None:
        """Set `count` blocks aside. Raises ValueError if fewer are available."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot promise {count} KV blocks: {self.num_available} are available")
        self.num_promised += count

    def withdraw(self, count: int) -> None:
        """Take back a promise, or what is left of it."""
        if not 0 <= count <= self.num_promised:
            raise ValueError(f"cannot withdraw a promise of {count} KV blocks: {self.num_promised} are promised")
        self.num_promised -= count

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks out of a promise; what they carried is forgotten."""
        self.withdraw(count)
        return [self._take_oldest() for _ in range(count)]

    def free(self, block_ids: Sequence[int]) -> None:
        """Let go of blocks, given in position order."""
        for block_id in reversed(block_ids):
            if self.refs[block_id] <= 0:
                raise ValueError(f"KV block {block_id} is freed but nobody holds it")
            self.refs[block_id] -= 1
            if not self.refs[block_id]:
                self._free[block_id] = None
                if self._hashes[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    def match_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that carry the longest known beginning of a chain; they are not held by being found."""
        block_ids: list[int] = []
        for block_hash in hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def count_free(self, block_ids: Sequence[int]) -> int:
        """How many of these nobody holds: what holding them takes from `num_available`."""
        return sum(not self.refs[block_id] for block_id in block_ids)

    def hold(self, block_ids: Sequence[int]) -> None:
        """Hold found blocks. Raises ValueError if that would break promises made to others."""
        if self.count_free(block_ids) > self.num_available:
            raise ValueError(f"cannot hold KV blocks {list(block_ids)}: {self.num_available} are available")
        for block_id in block_ids:
            if not self.refs[block_id]:
                del self._free[block_id]
            self.refs[block_id] += 1

    def cache_full_blocks(self, block_ids: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Make computed blocks findable. A prefix that another block carries already stays with that block."""
        for block_id, block_hash in zip(block_ids, hashes, strict=True):
            if self._hashes[block_id] is None and block_hash not in self._by_hash:
                self._hashes[block_id] = block_hash
                self._by_hash[block_hash] = block_id

    def take_evicted(self) -> list[tuple[bytes, int]]:
        """Prefixes that gave way since the last call, and their blocks, whose KV is there until the next forward."""
        evicted = self._evicted
        if evicted:
            self._evicted = []
        return evicted

    def reset_prefix_cache(self) -> None:
        """Forget all prefixes. Blocks stay with those who hold them."""
        self._by_hash.clear()
        self._hashes = [None] * self.num_blocks

    def check_integrity(self) -> None:
        """Raises IntegrityError if the books do not balance. O(num_blocks), for tests and debugging."""
        if faults := self.find_faults():
            raise IntegrityError("; ".join(faults))

    def find_faults(self) -> list[str]:
        """What is wrong with the books, one sentence each."""
        faults = []
        for block_id, refs in enumerate(self.refs):
            if refs < 0:
                faults.append(f"block {block_id} is held {refs} times")
            if (refs == 0) != (block_id in self._free):
                faults.append(f"block {block_id} is held {refs} times but free is {block_id in self._free}")
            block_hash = self._hashes[block_id]
            if block_hash is not None and self._by_hash.get(block_hash) != block_id:
                faults.append(f"block {block_id} carries a prefix that does not lead to it")
        if len(self._free) != sum(not refs for refs in self.refs):
            faults.append(f"the free list has {len(self._free)} entries")
        if len(self._by_hash) != sum(block_hash is not None for block_hash in self._hashes):
            faults.append(f"{len(self._by_hash)} prefixes are known but other blocks carry them")
        if not 0 <= self.num_promised <= len(self._free):
            faults.append(f"{self.num_promised} blocks are promised but {len(self._free)} are free")
        return faults

    def _take_oldest(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        self.refs[block_id] = 1
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            del self._by_hash[block_hash]
            self._hashes[block_id] = None
            if self.tells_evicted:
                self._evicted.append((block_hash, block_id))
        return block_id
