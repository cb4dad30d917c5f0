"""`--structured-outputs-config`: what holds for the form of every output, whatever its request says."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vllm.sampling_params import StructuredOutputsParams

BACKENDS = ("auto", "guidance")
_ASK_FOR_NOTHING = {"disable_fallback": False, "enable_in_reasoning": False, "reasoning_parser": ""}
"""Keys of vLLM's that have no meaning here, and the value that asks for nothing."""


@dataclass(frozen=True)
class OutputDefaults:
    """disable_any_whitespace: JSON is written without white space between its tokens; small models may never end else.

    disable_additional_properties: objects hold no properties but those of their schema.
    """

    backend: str = "auto"
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> OutputDefaults:
        """Raises ValueError, which names the key."""
        given = dict(config or {})
        known = {each.name: each.default for each in dataclasses.fields(cls)}
        for name, value in given.items():
            if name in _ASK_FOR_NOTHING and value == _ASK_FOR_NOTHING[name]:
                continue
            if name in _ASK_FOR_NOTHING:
                raise ValueError(f"structured_outputs_config: {name}={value!r} is not supported")
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise ValueError(f"structured_outputs_config: unknown key {name!r}; {hint}")
            if type(value) is not type(known[name]):
                expected = type(known[name]).__name__
                raise ValueError(f"structured_outputs_config: {name} must be of type {expected}, got {value!r}")
        defaults = cls(**{name: given[name] for name in given if name in known})
        if defaults.backend not in BACKENDS:
            known_ones = ", ".join(BACKENDS)
            raise ValueError(
                f"structured_outputs_config: backend {defaults.backend!r} is not available; known: {known_ones}"
            )
        return defaults

    def applied_to(self, constraint: StructuredOutputsParams) -> StructuredOutputsParams:
        """A request may ask for more than the defaults, not for less."""
        changes = {
            name: True
            for name in ("disable_any_whitespace", "disable_additional_properties")
            if getattr(self, name) and not getattr(constraint, name)
        }
        return msgspec.structs.replace(constraint, **changes) if changes else constraint
