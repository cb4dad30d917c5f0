"""Compiles untrusted grammars where it hurts nobody: `python -m vllm.engine.structured_outputs.sandbox`.

JSON lines through standard input and output. First a tokenizer comes (`GrammarTokenizer`), answered by {}; then
constraints, each answered by {"grammar": ...} or {"error": ...}. The stack is small, the memory bounded: a grammar
that compiles here compiles in the engine, whose threads have more of both. The parent bounds the time and ends this
process when it likes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from typing import Any

import msgspec
import psutil
from llguidance import LLMatcher, LLTokenizer

from vllm.engine.structured_outputs.grammar import build_grammar
from vllm.engine.structured_outputs.limits import (
    MAX_GRAMMAR_CHARS,
    SANDBOX_MEMORY_BYTES,
    SANDBOX_STACK_BYTES,
    parser_limits,
)
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer


def judge(constraint: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, str]:
    """{"grammar": text} for a constraint that compiles and lets an output begin, else {"error": why}."""
    try:
        grammar = build_grammar(constraint, tokenizer)
        if len(grammar) > MAX_GRAMMAR_CHARS:
            return {"error": f"it makes a grammar of {len(grammar)} characters; at most {MAX_GRAMMAR_CHARS} are taken"}
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
        if error := matcher.get_error():
            return {"error": error}
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            return {"error": "no output matches it"}
    except (ValueError, UnicodeError) as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    return {"grammar": grammar}


def _serve(answers: Any) -> None:
    tokenizer = msgspec.json.decode(sys.stdin.readline(), type=GrammarTokenizer).build()
    _limit_memory()
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(judge(json.loads(line), tokenizer)) + "\n")
        answers.flush()


def _limit_memory() -> None:
    limit = psutil.Process().memory_info().vms + SANDBOX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.stack_size(SANDBOX_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(answers,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
