"""What every client is asked, and what must come of it: one set for all of them.

The model is `obedient.py`. A check's name says what is held against what: `answer`, `stream`, `tools`, `object`,
`thinking`, and whatever stands behind an underscore tells the check from others of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TEXT = "Oslo is cold"
THOUGHT = "It may rain."
CITIES = ["Oslo", "Rome"]
DEGREES = 21
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}},
    "required": ["city"],
    "additionalProperties": False,
}
ASKED: dict[str, Any] = {
    "model": "test-model",
    "say": f"SAY {TEXT}",
    "think": f"THINK {THOUGHT} SAY {TEXT}",
    "turns": [f'CALL get_weather {{"city": "{city}"}}' for city in CITIES],
    "tool": {"name": "get_weather", "description": "The weather of a city, in degrees.", "parameters": SCHEMA},
    "schema": SCHEMA,
    "cities": CITIES,
    "degrees": DEGREES,
}


EXPECTED: dict[str, Callable[[Any], bool]] = {
    "answer": lambda value: value == TEXT,
    "stream": lambda value: "".join(value) == TEXT and len([piece for piece in value if piece]) > 1,
    "tools": lambda value: _tools_hold(**value),
    "object": lambda value: value in [{"city": city} for city in CITIES],
    "thinking": lambda value: value.strip() == THOUGHT,
    "batch": lambda value: value == [TEXT, TEXT],
    "edit": lambda value: value == TEXT,
}
"""By the beginning of a check's name; any other is to give True."""


def fault(name: str, value: Any) -> str | None:
    """What is wrong with the result of a check."""
    holds = EXPECTED.get(name.partition("_")[0], lambda value: value is True)
    return None if holds(value) else f"it gave {str(value)[:300]!r}"


def _tools_hold(texts: list[str], calls: list[Any] | None = None) -> bool:
    """Each turn's call reached the tool, and its result the model, whose words came back."""
    results = [f"{city}: {DEGREES} degrees" for city in CITIES]
    return (
        calls in (None, [{"city": city} for city in CITIES])
        and len(texts) == len(results)
        and all(text.startswith("The tool said: ") and line in text for text, line in zip(texts, results, strict=True))
    )
