"""How many values a JSON text holds, counted in its bytes before anything is made of them.

A text of one mebibyte decodes into one string, or into half a million lists of 64 bytes and more. So the values are
counted first. What a count finds within strings does not count; that is looked at only where a text holds so many
separators and brackets that it matters. A text is read in chunks: the scan of a large one, in a thread, lets other
threads run between them, takes no memory to speak of, and ends at the first count beyond its bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from vllm.exceptions import VLLMValidationError

MAX_ITEMS = 512 << 10
"""Values of every kind that a text may hold beside a whole prompt of token ids."""
MAX_OBJECTS = 64 << 10
"""Lists, objects, strings (names of members among them), true, false and null. What is left of the items are numbers,
which take less memory and time."""
_CHUNK_BYTES = 64 << 10


def check_counts(text: bytes, max_items: int = MAX_ITEMS, max_objects: int = MAX_OBJECTS) -> None:
    """Raises VLLMValidationError if `text` holds more values than that, whether or not it is valid JSON.

    Of a text that is not, as many values count as a decoder can make before it finds the fault.
    """
    if len(text) <= min(max_items, max_objects):  # each takes a byte at least
        return
    if _exceeds(_chunks(text), max_items, max_objects) is None:  # strings may hold what looks like values
        return
    if (fault := _exceeds(_outside_strings(text), max_items, max_objects)) is not None:
        raise VLLMValidationError(f"A request may hold at most {fault}; this one holds more. Split it.")


def _exceeds(pieces: Iterator[tuple[bytes, int]], max_items: int, max_objects: int) -> str | None:
    """pieces: of the text, each with the number of strings in it."""
    num_items, num_objects = 1, 0
    for piece, num_strings in pieces:
        containers = piece.count(b"[") + piece.count(b"{")
        num_items += containers + piece.count(b",") + piece.count(b":")
        num_objects += containers + num_strings + piece.count(b"t") + piece.count(b"f") + piece.count(b"n")
        if num_objects > max_objects:
            return f"{max_objects} lists, objects and strings"
        if num_items > max_items:
            return f"{max_items} values"
    return None


def _chunks(text: bytes) -> Iterator[tuple[bytes, int]]:
    """Of the text as it is; so the numbers may be too large."""
    for start in range(0, len(text), _CHUNK_BYTES):
        chunk = text[start : start + _CHUNK_BYTES]
        yield chunk, chunk.count(b'"')


def _outside_strings(text: bytes) -> Iterator[tuple[bytes, int]]:
    """Of the text without its strings."""
    within, rest = False, b""
    for start in range(0, len(text), _CHUNK_BYTES):
        chunk = rest + text[start : start + _CHUNK_BYTES]
        num_backslashes = len(chunk) - len(chunk.rstrip(b"\\"))
        whole = len(chunk) - num_backslashes % 2  # an escape may begin at the end
        chunk, rest = chunk[:whole], chunk[whole:]
        parts = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[within::2]), len(parts) // 2
        within ^= len(parts) % 2 == 0
