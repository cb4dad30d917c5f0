"""The store of responses, in memory and in a file that several share, against a dictionary."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec
import pytest

from vllm.entrypoints.openai.response_store import IN_MEMORY, ResponseStore, StoredResponse


def record(size: int) -> StoredResponse:
    return StoredResponse({"id": size}, [{"content": "x" * size}])


def test_bytes_are_counted() -> None:
    store = ResponseStore(max_records=100, max_bytes=1000)
    for i in range(50):
        store.put(f"resp_{i}", record(100))
        assert store.num_bytes <= 1000
    kept = [i for i in range(50) if store.get(f"resp_{i}") is not None]
    assert kept == list(range(50 - len(kept), 50)) and len(store) == len(kept) > 3
    store.get(f"resp_{kept[0]}")
    store.put("resp_new", record(100))
    assert store.get(f"resp_{kept[0]}") is not None and store.get(f"resp_{kept[1]}") is None
    store.put("resp_huge", record(2000))
    assert store.get("resp_huge") is None and store.get("resp_new") is not None


def test_items_of_outputs() -> None:
    """They are found as long as their response is kept."""
    store = ResponseStore(max_records=2, max_bytes=10_000)
    for i in range(3):
        store.put(f"resp_{i}", StoredResponse({"output": [{"id": f"msg_{i}"}, {"id": f"fc_{i}"}]}, []))
    assert [store.get_item(f"fc_{i}") for i in range(3)] == [None, {"id": "fc_1"}, {"id": "fc_2"}]
    store.put("resp_1", StoredResponse({"output": [{"id": "msg_1", "text": "x"}]}, []))
    store.delete("resp_2")
    items = [store.get_item(name) for name in ("msg_1", "fc_1", "msg_2", "\ud800")]
    assert items == [{"id": "msg_1", "text": "x"}, None, None, None]


@pytest.mark.parametrize("num_fronts", [1, 3])
def test_any_order_of_use(tmp_path: Path, num_fronts: int) -> None:
    """What is kept, and what goes first, is as in one dictionary in the order of use."""
    rng = random.Random(num_fronts)
    path = IN_MEMORY if num_fronts == 1 else str(tmp_path / "store")
    stores = [ResponseStore(8, 1000, path) for _ in range(num_fronts)]
    model: OrderedDict[str, bytes] = OrderedDict()
    for _ in range(1500):
        store, name = rng.choice(stores), f"resp_{rng.randrange(20)}"
        match rng.randrange(4):
            case 0 | 1:
                kept = record(rng.choice((1, 50, 200, 400, 1200)))
                store.put(name, kept)
                model.pop(name, None)
                if len(encoded := msgspec.json.encode(kept)) <= 1000:
                    model[name] = encoded
                while len(model) > 8 or sum(map(len, model.values())) > 1000:
                    model.popitem(last=False)
            case 2:
                found = store.get(name)
                assert (found and msgspec.json.encode(found)) == model.get(name)
                if found:
                    model.move_to_end(name)
            case 3:
                assert store.delete(name) == (model.pop(name, None) is not None)
        seen = rng.choice(stores)
        assert (len(seen), seen.num_bytes) == (len(model), sum(map(len, model.values())))


def test_names_that_no_server_gave() -> None:
    store = ResponseStore(8, 1000)
    for name in ("", "\ud800", "a\0b", "'; DROP TABLE responses; --", "x" * 100_000):
        assert store.get(name) is None and not store.delete(name)
        store.put(name, record(1))
        assert store.get(name) is not None


def test_what_is_asked_of_the_front_that_runs_it(tmp_path: Path) -> None:
    here, there = (ResponseStore(8, 1000, str(tmp_path / "store")) for _ in range(2))
    here.put("resp_1", record(1))
    assert here.is_shared and not ResponseStore(8, 1000).is_shared
    for _ in range(2):
        there.ask_to_cancel("resp_1")
        assert here.asked_to_cancel() == ["resp_1"]
    here.put("resp_1", record(2))
    assert there.asked_to_cancel() == [], "its last state has been put"
    there.ask_to_cancel("resp_1")
    there.forget_cancel("resp_1")
    assert here.asked_to_cancel() == []


def test_stores_that_begin_and_write_at_once(tmp_path: Path) -> None:
    def use(index: int) -> None:
        try:
            store = ResponseStore(1000, 1 << 20, str(tmp_path / "store"))
            for i in range(20):
                store.put(f"resp_{index}_{i}", record(100))
        except Exception as error:
            faults.append(error)

    faults: list[Exception] = []
    threads = [threading.Thread(target=use, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(ResponseStore(1000, 1 << 20, str(tmp_path / "store"))) == 160
