"""The pool against a model of it: who holds what, what is promised, which prefixes are findable, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vllm.core.block_pool import BlockPool, IntegrityError, hash_block, root_hash

TEXTS = ["a", "ab", "abc", "abcd", "abx", "b", "bc", "bcd"]


def chain(text: str) -> list[bytes]:
    """Hashes of blocks of one letter each."""
    hashes = [root_hash(0, None)]
    for letter in text:
        hashes.append(hash_block(hashes[-1], [ord(letter)]))
    return hashes[1:]


class PoolMachine(RuleBasedStateMachine):
    """holders: (text, its blocks so far, blocks still promised). prefix: block -> the text up to its end.

    age: when a free block was let go of; blocks that carry nothing are younger than all others.
    """

    @initialize(num_blocks=st.integers(1, 6))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, 1)
        self.holders: list[tuple[str, list[int], int]] = []
        self.prefix: dict[int, str] = {}
        self.freed_at: dict[int, int] = {}
        self.clock = 0

    def held(self) -> list[int]:
        return [block for _, blocks, _ in self.holders for block in blocks]

    def take(self, count: int) -> list[int]:
        """Allocate, and check that nothing older or less worth keeping was passed over."""
        taken = []
        for _ in range(count):
            free = set(range(self.pool.num_blocks)) - set(self.held()) - set(taken)
            (block,) = self.pool.allocate(1)
            assert block in free
            plain = {one for one in free if one not in self.prefix}
            if plain:
                assert block in plain
            else:
                assert self.freed_at[block] == min(self.freed_at[one] for one in free)
            self.prefix.pop(block, None)
            taken.append(block)
        return taken

    @rule(text=st.sampled_from(TEXTS), promised=st.sampled_from([0, 0, 1, 2]))
    def admit(self, text: str, promised: int) -> None:
        found = self.pool.match_prefix(chain(text))
        by_text = {prefix: block for block, prefix in self.prefix.items()}
        expected = []
        while len(expected) < len(text) and text[: len(expected) + 1] in by_text:
            expected.append(by_text[text[: len(expected) + 1]])
        assert found == expected
        count = len(text) - len(found) + promised
        if count + self.pool.count_free(found) > self.pool.num_available:
            with pytest.raises(ValueError, match="cannot promise"):
                self.pool.promise(self.pool.num_available + 1)
            return
        self.pool.hold(found)
        self.pool.promise(count)
        self.holders.append((text, found, count))
        taken = self.take(len(text) - len(found))
        self.holders[-1] = (text, found + taken, promised)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def cache(self, data: st.DataObject) -> None:
        text, blocks, _ = data.draw(st.sampled_from(self.holders))
        length = data.draw(st.sampled_from([len(text), len(text), len(text) - 1]))
        self.pool.cache_full_blocks(blocks[:length], chain(text)[:length])
        for end in range(1, length + 1):
            if text[:end] not in self.prefix.values() and blocks[end - 1] not in self.prefix:
                self.prefix[blocks[end - 1]] = text[:end]

    @precondition(lambda self: any(promised for _, _, promised in self.holders))
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """A promise holds, however full the pool is."""
        index = data.draw(st.sampled_from([i for i, holder in enumerate(self.holders) if holder[2]]))
        text, blocks, promised = self.holders[index]
        taken = self.take(1)
        self.holders[index] = (text, blocks + taken, promised - 1)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        _, blocks, promised = self.holders.pop(index)
        self.pool.withdraw(promised)
        self.pool.free(blocks)
        self.age(blocks)

    def age(self, blocks: list[int]) -> None:
        """The last block of a prefix is used again before its first."""
        for block in reversed(blocks):
            if block not in self.held():
                self.clock += 1
                self.freed_at[block] = self.clock

    @precondition(lambda self: len(self.prefix) > 3)
    @rule()
    def reset(self) -> None:
        self.pool.reset_prefix_cache()
        self.prefix.clear()

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        held = self.held()
        assert self.pool.refs == [held.count(block) for block in range(self.pool.num_blocks)]
        assert self.pool.num_free == self.pool.num_blocks - len(set(held))
        assert self.pool.num_promised == sum(promised for _, _, promised in self.holders)
        assert self.pool.num_available == self.pool.num_free - self.pool.num_promised >= 0
        assert self.pool.num_cached == len(self.prefix)
        assert self.pool.usage == pytest.approx(len(set(held)) / self.pool.num_blocks)


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestPoolMachine = PoolMachine.TestCase


def keep(pool: BlockPool, text: str) -> list[int]:
    """A holder comes, computes a text, leaves; its blocks."""
    pool.promise(len(text))
    blocks = pool.allocate(len(text))
    pool.cache_full_blocks(blocks, chain(text))
    pool.free(blocks)
    return blocks


def take_all(pool: BlockPool) -> list[int]:
    pool.promise(pool.num_available)
    return pool.allocate(pool.num_free)


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    pool = BlockPool(3, 1)
    blocks = keep(pool, "abc")
    assert take_all(pool) == blocks[::-1]


def test_blocks_that_carry_nothing_go_first() -> None:
    pool = BlockPool(3, 1)
    pool.promise(1)
    (plain,) = pool.allocate(1)
    carrying = keep(pool, "ab")
    pool.free([plain])
    assert take_all(pool) == [plain, *carrying[::-1]]


def test_a_prefix_that_was_found_again_goes_last() -> None:
    pool = BlockPool(2, 1)
    (old,), (young,) = keep(pool, "a"), keep(pool, "b")
    pool.hold([old])
    pool.free([old])
    assert take_all(pool) == [young, old]


def test_a_hash_depends_on_all_before_it() -> None:
    one, other = root_hash(0, None), root_hash(0, None)
    assert hash_block(one, [1, 2]) == hash_block(other, [1, 2])
    hashes = {
        hash_block(one, [1, 2]),
        hash_block(one, [2, 1]),
        hash_block(one, [1, 2, 0]),
        hash_block(hash_block(one, [1]), [2]),
        hash_block(root_hash(1, None), [1, 2]),
        hash_block(root_hash(0, ""), [1, 2]),
        hash_block(root_hash(0, "tenant"), [1, 2]),
        hash_block(root_hash(0, "\ud800"), [1, 2]),
    }
    assert len(hashes) == 8
    assert all(len(digest) == 32 for digest in hashes)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda pool: pool.free([0]),
        lambda pool: pool.promise(3),
        lambda pool: pool.promise(-1),
        lambda pool: pool.withdraw(1),
        lambda pool: pool.allocate(1),
    ],
)
def test_misuse_is_an_error_that_changes_nothing(misuse) -> None:
    pool = BlockPool(2, 16)
    with pytest.raises(ValueError):
        misuse(pool)
    pool.check_integrity()
    assert (pool.num_free, pool.num_promised) == (2, 0)


def test_a_found_prefix_cannot_be_held_against_a_promise() -> None:
    pool = BlockPool(2, 1)
    pool.promise(1)
    blocks = pool.allocate(1)
    pool.cache_full_blocks(blocks, chain("a"))
    pool.free(blocks)
    pool.promise(2)
    with pytest.raises(ValueError, match="cannot hold"):
        pool.hold(pool.match_prefix(chain("a")))
    assert len(pool.allocate(2)) == 2


@pytest.mark.parametrize("size", [(0, 16), (4, 0), (-1, 16)])
def test_an_empty_pool_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(*size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool.refs.__setitem__(0, 1),
        lambda pool: pool.refs.__setitem__(0, -1),
        lambda pool: pool._free.popitem(),
        lambda pool: setattr(pool, "num_promised", 9),
        lambda pool: pool._by_hash.__setitem__(b"x", 1),
        lambda pool: pool._hashes.__setitem__(1, b"x"),
    ],
)
def test_damage_is_found(damage) -> None:
    pool = BlockPool(4, 16)
    pool.check_integrity()
    damage(pool)
    with pytest.raises(IntegrityError):
        pool.check_integrity()
