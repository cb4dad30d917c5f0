"""Text of others on a terminal: what a server or a model sends can neither move the cursor nor change the screen."""

from __future__ import annotations

from typing import TextIO

from vllm.logger import visible


class TerminalWriter:
    """Writes text as it comes. On a terminal, control characters other than line feeds and tabs are made visible, and
    carriage returns with a line feed left out; elsewhere text is written as it is."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._held = ""

    def write(self, text: str) -> None:
        if self._is_terminal:
            text, self._held = self._held + text, ""
            if text.endswith("\r"):  # a line feed may follow
                text, self._held = text[:-1], "\r"
            text = visible(text.replace("\r\n", "\n"))
        self._put(text)

    def finish(self) -> None:
        """What was held back, and the end of the line."""
        held, self._held = self._held, ""
        self._put(visible(held) + "\n")

    def _put(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._out.flush()
