"""Drafts out of the text itself (prompt lookup): what followed the last time the text went on as it does now.

The longest end of the text, of `shortest` to `longest` tokens, that occurs before is looked for; among occurrences of
that length the most recent one counts, and the tokens behind it are the drafts. Where they reach the end of the text
they go on into the drafts themselves, so that a text that repeats with any period is drafted to the full count.

This is the definition; the cpu target has it in csrc/runtime/ngram.cpp.
"""

from __future__ import annotations

import numpy as np

from vllm.device.model_input import IntArray


def find_match(tokens: IntArray, shortest: int, longest: int) -> int:
    """Where the tokens behind the match begin; -1 if there is none. Overlaps with the end are matches too."""
    length = len(tokens)
    best_start, best_length = -1, shortest - 1
    for end in np.flatnonzero(tokens[:-1] == tokens[-1])[::-1].tolist():
        matched = 1
        while matched < longest and matched <= end and tokens[end - matched] == tokens[length - 1 - matched]:
            matched += 1
        if matched > best_length:
            best_start, best_length = end + 1, matched
            if matched == longest:
                break
    return best_start


def propose(tokens: IntArray, shortest: int, longest: int, count: int) -> list[int]:
    """At most `count` drafts that follow int32 [n] tokens."""
    start = find_match(tokens, shortest, longest) if len(tokens) else -1
    if start < 0:
        return []
    period = len(tokens) - start
    return [int(tokens[start + i % period]) for i in range(count)]
