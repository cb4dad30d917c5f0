"""Parsers from outside: classes of `OutputParser`'s two methods, registered by name; files that register them."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

P = TypeVar("P", bound=Callable[[], Any])


class ParserManager:
    """A registry under the names of vLLM's class methods; see docs/tool_calling.md for what a parser is."""

    def __init__(self, kind: str, parsers: dict[str, Callable[[], Any]]) -> None:
        self._kind = kind
        self._parsers = parsers

    def list_registered(self) -> list[str]:
        return sorted(self._parsers)

    def register_module(
        self, name: str | list[str], force: bool = True, module: P | None = None
    ) -> Callable[[P], P] | P:
        """Register a class under one or several names; without `module`, as a decorator.

        Raises KeyError for a name that is taken, unless force.
        """
        names = [name] if isinstance(name, str) else name

        def register(parser: P) -> P:
            for each in names:
                if not force and each in self._parsers:
                    raise KeyError(f"there is a {self._kind} parser {each!r} already")
                self._parsers[each] = parser
            return parser

        return register if module is None else register(module)

    def get(self, name: str) -> Callable[[], Any]:
        """Raises KeyError for an unknown name, with the nearest known one."""
        if name in self._parsers:
            return self._parsers[name]
        nearest = difflib.get_close_matches(name, self._parsers, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(self.list_registered())}"
        raise KeyError(f"there is no {self._kind} parser {name!r}; {hint}")

    def import_file(self, path: str) -> None:
        """Run a Python file that registers parsers. Raises ValueError if it cannot be run."""
        name = f"vllm_plugin_{Path(path).stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path!r} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"{path!r} cannot be run: {type(error).__name__}: {error}") from error

    get_tool_parser = get
    get_reasoning_parser = get
    import_tool_parser = import_file
    import_reasoning_parser = import_file
