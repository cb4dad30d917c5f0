"""Calls that are objects of JSON, `{"name": ..., "arguments": {...}}`, given while they are written.

A call begins with its arguments' brace, where its name stands before; from there on it is what the model writes, until
the arguments close, or break off (cut by its length, or no JSON any more). Written in another order, or with the
arguments as a text, it is given whole when its object closes. What is no call stays text; a call that is cut off before
its arguments is neither.
"""

from __future__ import annotations

from vllm.entrypoints.chat_output.parsers.base import CallArguments, CallStart, Content, Part, ToolCall
from vllm.entrypoints.chat_output.parsers.json_text import JsonScanner, whole_value

USUAL_KEYS = ("name", "type", "id")
"""Keys of a call beside its arguments."""


class CallReader:
    """Reads one object.

    keys: names that the arguments may have. tool_names: None where they are not known. usual_only: it breaks off at an
    unusual key, or at a name that is no tool's.
    raw: the object's text, until the call has begun.
    """

    def __init__(self, keys: tuple[str, ...], tool_names: frozenset[str] | None, *, usual_only: bool) -> None:
        self.begun = False
        self.raw: list[str] = []
        self._keys = keys
        self._tool_names = tool_names
        self._usual_only = usual_only
        self._is_usual = True
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
        return self._scanner.broken or (self._usual_only and not self._is_usual)

    @property
    def in_string(self) -> bool:
        return self._scanner.in_string

    @property
    def looks_like_call(self) -> bool:
        """Whether the object, as far as it came, has a tool's name and no unusual key."""
        return self._is_usual and (self._name is not None or self._scanner.key == "name")

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        """What became certain, and where the object ended, or broke off, or the text did."""
        parts: list[Part] = []
        pieces: list[str] = []
        scanner = self._scanner
        while position < len(text) and not (scanner.done or self.broken):
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
        if scanner.depth != 1 or scanner.key is None:
            return
        if scanner.key == "name":
            self._name = scanner.text
            is_tool = self._name is None or self._tool_names is None or self._name in self._tool_names
            self._is_usual = self._is_usual and is_tool
        elif scanner.key in self._keys:
            self._arguments_as_text = scanner.text
        elif scanner.key not in USUAL_KEYS:
            self._is_usual = False

    def _opens_arguments(self, written: str) -> bool:
        return self._scanner.depth == 2 and written == "{" and self._scanner.key in self._keys


class CallsReader:
    """Reads calls one after another: in a list if `listed`, else with `;` or white space between them.

    held: a mark before them, which is content if no call comes. is_sure: only calls stand here, so that what is cut off
    is one; else it must look like one. among_text: the objects stand within a text, where one with an unusual key, or
    with a name that is no tool's, is no call. tool_names: None where they are not known.

    begun: whether a call came. ended: whether what follows, from where `feed` stopped, is none of the calls'.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        *,
        listed: bool,
        held: str = "",
        is_sure: bool = True,
        among_text: bool = False,
        tool_names: frozenset[str] | None = None,
    ) -> None:
        self.begun = False
        self.ended = False
        self._keys = keys
        self._listed = listed
        self._is_sure = is_sure
        self._among_text = among_text
        self._tool_names = tool_names
        self._held = [held]
        self._state = "start" if listed else "item"
        self._reader: CallReader | None = None

    def holds(self, mark: str) -> bool:
        """Whether a mark that comes now is part of a string."""
        return self._reader is not None and self._reader.in_string

    def feed(self, text: str, position: int) -> tuple[list[Part], int]:
        """What became certain of the text from `position` on, and where the calls ended, or the text did."""
        parts: list[Part] = []
        while position < len(text) and not self.ended:
            if self._reader is None and not self._goes_on(text[position]):
                parts += self._give_up()
            elif self._reader is None:
                position += 1
            else:
                reader = self._reader
                found, position = reader.feed(text, position)
                parts += self._note(found) + self._check_object(reader)
        return parts, position

    def finish(self, is_cut: bool) -> list[Part]:
        """A call that was broken off has been given as far as it came; one that is cut off before is dropped."""
        if self._reader is None:
            is_cut = is_cut and self._is_sure and self._state in ("start", "item")
            return [] if self.begun or is_cut else self._give_up()
        is_cut = is_cut and (self._is_sure or self.begun or self._reader.looks_like_call)
        return [] if self._reader.begun or is_cut else self._give_up()

    def _goes_on(self, character: str) -> bool:
        """Whether a character between objects belongs there."""
        if self._state == "item" and character == "{":
            self._reader = CallReader(self._keys, self._tool_names, usual_only=self._among_text)
            return True
        if self._state == "start" and character == "[":
            self._state = "item"
        elif character == "]" and self._listed and self.begun and self._state in ("item", "next"):
            self._state, self._held = "end", []
            return True
        elif self._state == "next" and character == ",":
            self._state = "item"
        elif not (character.isspace() or (character == ";" and not self._listed and self.begun)):
            return False
        self._held.append(character)
        return True

    def _note(self, found: list[Part]) -> list[Part]:
        if found:
            self.begun = True
            self._held = []
        return found

    def _check_object(self, reader: CallReader) -> list[Part]:
        """What the object that is read turns out to be."""
        if reader.broken:
            return self._give_up()
        if not reader.done:
            return []
        call = None if reader.begun else reader.whole()
        if call is None and not reader.begun:
            return self._give_up()
        self._reader, self._state = None, "next" if self._listed else "item"
        return [] if call is None else self._note([call])

    def _give_up(self) -> list[Part]:
        """What was held, and what of an object did not become a call."""
        raw = [] if self._reader is None or self._reader.begun else self._reader.raw
        text, self._held, self._reader, self.ended = "".join([*self._held, *raw]), [], None, True
        return [Content(text)] if text else []
