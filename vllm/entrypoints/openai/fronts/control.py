"""What the owner and a front tell one another: lines of JSON over a pair of sockets, one end of which is the front's
standard input. When it closes, the other side is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec

_CHUNK_BYTES = 1 << 16


class Spec(msgspec.Struct, tag="spec"):
    """A front, and its first message. args: JSON of the server's arguments. listener: file descriptor of its socket."""

    args: str
    index: int
    count: int
    directory: str
    listener: int


class NextEngine(msgspec.Struct, tag="engine"):
    """An engine starts, for the front to attach to. number: from 1. config: as `core_proc.encode_config` writes it."""

    number: int
    config: msgspec.Raw


class Lost(msgspec.Struct, tag="lost"):
    """An engine that ran is gone; why."""

    number: int
    reason: str


class Stop(msgspec.Struct, tag="stop"):
    """Drain and end. at_once: give what runs no more time."""

    at_once: bool = False


class Serving(msgspec.Struct, tag="serving"):
    """The front takes requests for an engine. models: their names."""

    number: int
    models: list[str]


class Failed(msgspec.Struct, tag="failed"):
    """The front cannot start; why."""

    reason: str


ToFront = Spec | NextEngine | Lost | Stop
FromFront = Serving | Failed

to_front_decoder: msgspec.json.Decoder[ToFront] = msgspec.json.Decoder(ToFront)
from_front_decoder: msgspec.json.Decoder[FromFront] = msgspec.json.Decoder(FromFront)


def line_of(message: ToFront | FromFront) -> bytes:
    return msgspec.json.encode(message) + b"\n"


class OwnerLine:
    """The front's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._messages = self._read()

    def __iter__(self) -> Iterator[ToFront]:
        """What the owner says, until it is gone. Blocks."""
        return self._messages

    def tell(self, message: FromFront) -> None:
        self._connection.sendall(line_of(message))

    def _read(self) -> Iterator[ToFront]:
        rest = b""
        while chunk := self._connection.recv(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(to_front_decoder.decode, lines)
