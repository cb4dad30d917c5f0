"""Responses that later requests may refer to: bounded by number and by bytes, the least recently used go.

A table of SQLite's: in memory, or in a file where several fronts share one store. A record is kept as the JSON it
amounts to, so that its size is known and nobody can change it. Whoever knows the id of a response can read it; ids are
random, and never the client's.

A response in the background runs in one front, and whoever asks for its end may have reached another: what was asked
for is kept beside the records until that front has put the response's last state.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

IN_MEMORY = ":memory:"
_LOCKED_SECONDS = 10.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS responses (id BLOB PRIMARY KEY, used INTEGER, num_bytes INTEGER, record BLOB)",
    "CREATE INDEX IF NOT EXISTS by_use ON responses (used, num_bytes)",
    "CREATE TABLE IF NOT EXISTS cancels (id BLOB PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS items (id BLOB PRIMARY KEY, response BLOB)",
    "CREATE INDEX IF NOT EXISTS by_response ON items (response)",
)


class StoredResponse(msgspec.Struct):
    """response: as it was answered. messages: the conversation up to and with its output, for a chat template."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


class ResponseStore:
    def __init__(self, max_records: int, max_bytes: int, path: str = IN_MEMORY) -> None:
        """path: of a file in a private directory, which need not outlive the server."""
        self._max_records = max_records
        self._max_bytes = max_bytes
        self.is_shared = path != IN_MEMORY
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(StoredResponse)
        self._database = sqlite3.connect(path, timeout=_LOCKED_SECONDS, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        with self._transaction():
            for statement in _SCHEMA:
                self._database.execute(statement)

    def __len__(self) -> int:
        return self._size()[0]

    @property
    def num_bytes(self) -> int:
        return self._size()[1]

    def put(self, response_id: str, record: StoredResponse) -> None:
        """A record that is larger than the whole store is not kept."""
        key, encoded = _key(response_id), self._encoder.encode(record)
        with self._transaction():
            self._remove(key)
            if len(encoded) <= self._max_bytes:
                insert = "INSERT INTO responses SELECT ?, ifnull(max(used), 0) + 1, ?, ? FROM responses"
                self._database.execute(insert, (key, len(encoded), encoded))
                items = [(_key(item["id"]), key) for item in record.response.get("output", ())]
                self._database.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", items)
            self._evict()

    def get(self, response_id: str) -> StoredResponse | None:
        key = _key(response_id)
        with self._transaction():
            found = self._database.execute("SELECT record FROM responses WHERE id = ?", (key,)).fetchone()
            touch = "UPDATE responses SET used = (SELECT max(used) + 1 FROM responses) WHERE id = ?"
            self._database.execute(touch, (key,))
        return None if found is None else self._decoder.decode(found[0])

    def get_item(self, item_id: str) -> dict[str, Any] | None:
        """An item of the output of a stored response."""
        found = self._database.execute("SELECT response FROM items WHERE id = ?", (_key(item_id),)).fetchone()
        record = None if found is None else self.get(_text(found[0]))
        items = () if record is None else record.response["output"]
        return next((item for item in items if item["id"] == item_id), None)

    def delete(self, response_id: str) -> bool:
        """Whether there was one."""
        with self._transaction():
            return self._remove(_key(response_id))

    def ask_to_cancel(self, response_id: str) -> None:
        """Let the front that runs it know."""
        self._database.execute("INSERT OR IGNORE INTO cancels VALUES (?)", (_key(response_id),))

    def asked_to_cancel(self) -> list[str]:
        return [_text(key) for (key,) in self._database.execute("SELECT id FROM cancels").fetchall()]

    def forget_cancel(self, response_id: str) -> None:
        self._database.execute("DELETE FROM cancels WHERE id = ?", (_key(response_id),))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            yield

    def _remove(self, key: bytes) -> bool:
        self._database.execute("DELETE FROM cancels WHERE id = ?", (key,))
        self._database.execute("DELETE FROM items WHERE response = ?", (key,))
        return self._database.execute("DELETE FROM responses WHERE id = ?", (key,)).rowcount > 0

    def _evict(self) -> None:
        count, num_bytes = self._size()
        while count > self._max_records or num_bytes > self._max_bytes:
            oldest = "SELECT id, num_bytes FROM responses ORDER BY used LIMIT 1"
            key, size = self._database.execute(oldest).fetchone()
            self._remove(key)
            count, num_bytes = count - 1, num_bytes - size

    def _size(self) -> tuple[int, int]:
        """Records, and bytes of all."""
        count, num_bytes = self._database.execute("SELECT count(*), total(num_bytes) FROM responses").fetchone()
        return count, int(num_bytes)


def _key(response_id: str) -> bytes:
    """Whatever a client names, half of a surrogate pair too."""
    return response_id.encode("utf-8", "surrogatepass")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
