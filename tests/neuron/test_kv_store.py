"""The KV store over its tiers: a load falls back to the next one, and arrives in the step in which its tier has it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vllm.core.contract import KVOperation, KVOrder, ModelRunnerOutput
from vllm.device.model_input import ByteArray
from vllm.kv.store import HostMemory, KVStore

BLOCK = 64
KEY = b"k" * 32


class Device:
    """Four blocks of bytes."""

    kv_block_bytes = BLOCK

    def __init__(self) -> None:
        self.kv = np.arange(4, dtype=np.uint8).repeat(BLOCK).reshape(4, BLOCK)

    def read_kv(self, block_ids: list[int], out: ByteArray) -> None:
        out[:] = self.kv[block_ids]

    def write_kv(self, block_ids: list[int], data: ByteArray) -> None:
        self.kv[block_ids] = data


class Slow(HostMemory):
    """Ends its loads when it is told to, rightly or not."""

    def __init__(self, news: threading.Event) -> None:
        super().__init__(4, BLOCK)
        self.news = news
        self.asked: list[tuple[int, bytes, ByteArray]] = []

    def start(self, ticket: int, key: bytes, out: ByteArray) -> None:
        self.asked.append((ticket, key, out))

    def end(self, ok: bool) -> None:
        for ticket, key, out in self.asked:
            super().start(ticket, key, out)
            self._done[ticket] = ok
        self.asked.clear()
        self.news.set()


@pytest.fixture
def store() -> KVStore:
    news = threading.Event()
    store = KVStore(Device(), [Slow(news), Slow(news)], news)  # type: ignore[arg-type]
    result = ModelRunnerOutput()
    store.start([KVOrder(1, KVOperation.SAVE, 3, KEY)], result)
    assert result.kv_done == {1: True} and KEY in store.hashes()
    return store


def load(store: KVStore, ticket: int = 2) -> None:
    result = ModelRunnerOutput()
    store.start([KVOrder(ticket, KVOperation.LOAD, 0, KEY)], result)
    store.poll(result)
    assert result.kv_done == {}, "nothing is done yet"


def test_a_load_arrives_in_a_later_step(store: KVStore) -> None:
    load(store)
    assert (store.device.kv[0] == 0).all()
    store.tiers[0].end(True)
    result = ModelRunnerOutput()
    store.poll(result)
    assert result.kv_done == {2: True} and (store.device.kv[0] == 3).all()


@pytest.mark.parametrize("last", [True, False])
def test_a_load_that_fails_is_tried_in_the_next_tier(store: KVStore, last: bool) -> None:
    load(store)
    store.tiers[0].end(False)
    result = ModelRunnerOutput()
    store.poll(result)
    assert result.kv_done == {}
    store.tiers[1].end(last)
    store.poll(result)
    assert result.kv_done == {2: last} and (store.device.kv[0] == (3 if last else 0)).all()
    assert store.stats()["loaded_blocks"] == last and store.stats()["failed_loads"] == (not last)


def test_a_step_with_nothing_else_to_do_waits_for_news(store: KVStore) -> None:
    load(store)
    thread = threading.Thread(target=store.tiers[0].end, args=(True,))
    thread.start()
    result = ModelRunnerOutput()
    store.poll(result, seconds=300)
    thread.join()
    assert result.kv_done == {2: True}


def test_what_no_tier_has_ends_at_once(store: KVStore) -> None:
    result = ModelRunnerOutput()
    store.start([KVOrder(5, KVOperation.LOAD, 0, b"?" * 32)], result)
    assert result.kv_done == {5: False}
