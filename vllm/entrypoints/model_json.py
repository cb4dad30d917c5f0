"""JSON that a model wrote, read into values that can be written again.

JSON bounds neither the size of numbers nor their digits, and has escapes for half a surrogate pair; Python's values of
those are refused by whatever is to write them: as JSON, as UTF-8, as tokens.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vllm.sampling_params import is_deeper

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
MAX_DEPTH = 128
_MAX_DIGITS = 4000
"""Of integers that are read as such: Python converts no more than 4300."""


def decoded(text: str) -> Any:
    """What a JSON text stands for, in values that can be written as JSON again, and as UTF-8.

    Half a surrogate pair becomes U+FFFD; a number that is too large for Python's becomes its text.
    Raises ValueError for what is no JSON, NaN among it, and for what is nested more deeply than a request may be.
    """
    try:
        value = json.loads(
            _ESCAPE.sub(_without_halves, text), parse_int=_integer, parse_float=_float, parse_constant=_no_constant
        )
        if not is_deeper(value, MAX_DEPTH):
            return value
    except RecursionError:
        pass
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _without_halves(match: re.Match[str]) -> str:
    return r"\ufffd" if match[1] else match[0]


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
