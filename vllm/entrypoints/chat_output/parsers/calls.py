"""Calls that are objects of JSON, `{"name": ..., "arguments": {...}}`, given while they are written.

A call begins with its arguments' brace, where its name stands before; from there on it is what the model writes, until
the arguments close, or break off (cut by its length, or no JSON any more). Written in another order, or with the
arguments as a text, it is given whole when its object closes. What is no call stays text.
"""

from __future__ import annotations

from vllm.entrypoints.chat_output.parsers.base import CallArguments, CallStart, Content, Part, ToolCall
from vllm.entrypoints.chat_output.parsers.json_text import JsonScanner, whole_value


class CallReader:
    """Reads one object. keys: names that the arguments may have. raw: what came of it, until the call has begun."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.begun = False
        self.raw: list[str] = []
        self._keys = keys
        self._scanner = JsonScanner()
        self._name: str | None = None
        self._arguments: list[str] = []
        self._arguments_as_text: str | None = None
        self._inside = False

    @property
    def done(self) -> bool:
        return self._scanner.done

    @property
    def broken(self) -> bool:
        return self._scanner.broken

    @property
    def in_string(self) -> bool:
        return self._scanner.in_string

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        """What became certain, and where the object ended, or broke off, or the text did."""
        parts: list[Part] = []
        pieces: list[str] = []
        scanner = self._scanner
        while position < len(text) and not (scanner.done or scanner.broken):
            start = position
            written, position = scanner.take(text, position)
            if not self.begun:
                self.raw.append(text[start:position])
                self._note_field()
            if self._inside:
                (pieces if self.begun else self._arguments).append(written)
                self._inside = scanner.depth > 1
            elif not self.begun and self._opens_arguments(written):
                self._inside = True
                if self._name is None:
                    self._arguments = [written]
                else:
                    self.begun = True
                    parts.append(CallStart(self._name))
                    pieces.append(written)
        return ([*parts, CallArguments("".join(pieces))] if any(pieces) else parts), position

    def whole(self) -> ToolCall | None:
        """The call that a closed object is, which did not begin while it was written. Arguments that are a text are
        taken for their JSON."""
        arguments = "".join(self._arguments) or whole_value(self._arguments_as_text or "")
        if self._name is None or arguments is None or not arguments.startswith("{"):
            return None
        return ToolCall(self._name, arguments)

    def _note_field(self) -> None:
        """Of a call whose arguments have not begun: the fields that are texts."""
        scanner = self._scanner
        if scanner.depth == 1 and scanner.key == "name":
            self._name = scanner.text
        elif scanner.depth == 1 and scanner.key in self._keys:
            self._arguments_as_text = scanner.text

    def _opens_arguments(self, written: str) -> bool:
        return self._scanner.depth == 2 and written == "{" and self._scanner.key in self._keys


class CallsReader:
    """Reads calls one after another: in a list if `listed`, else with `;` or white space between them.

    held: text before the first one, which is content if none comes. begun: whether one came. From what is no call on,
    all is content.
    """

    def __init__(self, keys: tuple[str, ...], *, listed: bool, held: str = "") -> None:
        self.begun = False
        self._keys = keys
        self._listed = listed
        self._held = [held]
        self._state = "start" if listed else "item"
        self._reader: CallReader | None = None

    @property
    def in_string(self) -> bool:
        """Whether a mark that comes now is part of a string."""
        return self._reader is not None and self._reader.in_string

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        position = 0
        while position < len(text):
            if self._state == "text":
                parts.append(Content(text[position:]))
                break
            if self._reader is None and not self._goes_on(text[position]):
                parts += self._give_up()
                continue
            if self._reader is None:
                position += 1
                continue
            found, position = self._reader.feed(text, position)
            parts += self._note(found)
            if self._reader.broken:
                parts += self._give_up()
            elif self._reader.done:
                parts += self._end_object()
        return parts

    def finish(self) -> list[Part]:
        """A call that was broken off has been given as far as it came. Of what is none, the text."""
        if self._reader is not None and not self._reader.begun:
            return self._give_up()
        held, self._held = "".join(self._held), []
        return [] if self.begun or not held else [Content(held)]

    def _goes_on(self, character: str) -> bool:
        """Whether a character between objects belongs there."""
        if self._state == "item" and character == "{":
            self._reader = CallReader(self._keys)
            return True
        if self._state == "start" and character == "[":
            self._state = "item"
        elif self._state == "next" and character in ",]":
            self._state = "item" if character == "," else "end"
        elif not (character.isspace() or (character == ";" and not self._listed and self.begun)):
            return False
        self._held.append(character)
        return True

    def _note(self, found: list[Part]) -> list[Part]:
        if found:
            self.begun = True
            self._held = []
        return found

    def _end_object(self) -> list[Part]:
        reader, self._reader = self._reader, None
        self._state = "next" if self._listed else "item"
        if reader is None or reader.begun:
            return []
        call = reader.whole()
        if call is not None:
            return self._note([call])
        self._reader = reader
        return self._give_up()

    def _give_up(self) -> list[Part]:
        """What was held, and what of an object did not become a call."""
        raw = [] if self._reader is None or self._reader.begun else self._reader.raw
        text, self._held, self._reader, self._state = "".join([*self._held, *raw]), [], None, "text"
        return [Content(text)] if text else []
