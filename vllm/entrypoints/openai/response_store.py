"""Responses that later requests may refer to: in memory, bounded by number and by bytes, the least recently used go.

A record is kept as the JSON it amounts to, so that its size is known and nobody can change it. Whoever knows the id of
a response can read it; ids are random, and never the client's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec


class StoredResponse(msgspec.Struct):
    """response: as it was answered. messages: the conversation up to and with its output, for a chat template."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


class ResponseStore:
    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(StoredResponse)
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def put(self, response_id: str, record: StoredResponse) -> None:
        """A record that is larger than the whole store is not kept."""
        self.delete(response_id)
        encoded = self._encoder.encode(record)
        if len(encoded) > self._max_bytes:
            return
        self._records[response_id] = encoded
        self.num_bytes += len(encoded)
        while len(self._records) > self._max_records or self.num_bytes > self._max_bytes:
            _, oldest = self._records.popitem(last=False)
            self.num_bytes -= len(oldest)

    def get(self, response_id: str) -> StoredResponse | None:
        encoded = self._records.get(response_id)
        if encoded is None:
            return None
        self._records.move_to_end(response_id)
        return self._decoder.decode(encoded)

    def delete(self, response_id: str) -> bool:
        """Whether there was one."""
        encoded = self._records.pop(response_id, None)
        self.num_bytes -= len(encoded or b"")
        return encoded is not None
