"""The marks of parsers as tokens: `<think>`, `<tool_call>` and the like, which a tokenizer may have a token for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def token_of(mark: str | None, tokenizer: Any, vocab_size: int) -> int | None:
    """The one token that a mark is, and that the model can write."""
    if mark is None or tokenizer is None:
        return None
    ids = tokenizer.encode(mark, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] < vocab_size else None


def any_special(marks: Iterable[str], tokenizer: Any, vocab_size: int) -> bool:
    """Whether a text without special tokens would lack one of the marks."""
    tokens = [token_of(mark, tokenizer, vocab_size) for mark in marks]
    return any(token in tokenizer.special_ids for token in tokens if token is not None)
