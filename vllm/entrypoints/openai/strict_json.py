"""Requests are read as strict JSON: no NaN or infinity, no lone surrogates, numbers, depth and counts within bounds.

What the standard library lets through of these would come up as an error much later, far from whoever sent it. Counts
are bounded before anything is decoded (`json_counts`). Depth is bounded for all that walks a request, or writes parts
of it into an answer: schemas, templates, serialisers.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from vllm.entrypoints.model_json import MAX_DEPTH
from vllm.entrypoints.server.json_counts import MAX_ITEMS, check_counts
from vllm.sampling_params import is_deeper


def read_json(text: bytes, max_items: int = MAX_ITEMS) -> Any:
    """max_items: values of every kind.

    Raises json.JSONDecodeError for what is not strict JSON, VLLMValidationError for what holds too much.
    """
    check_counts(text, max_items)
    try:
        value = msgspec.json.decode(text)
        is_flat = text.count(b"[") + text.count(b"{") <= MAX_DEPTH
        if is_flat or not is_deeper(value, MAX_DEPTH):
            return value
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    except RecursionError:
        pass
    raise json.JSONDecodeError(f"it is nested more than {MAX_DEPTH} levels deep", "", 0)
