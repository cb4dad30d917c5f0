"""Compiles untrusted grammars where it hurts nobody: `python -m vllm.engine.structured_outputs.sandbox`.

JSON lines through standard input and output. First a tokenizer comes (`GrammarTokenizer`), answered by {}; then
constraints, each answered by {"grammar": ...} or {"error": ..., "place": ...}. The stack is small, the memory bounded:
a grammar that compiles here compiles in the engine, whose threads have more of both. The parent bounds the time and
ends this process when it likes.
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

from vllm.engine.structured_outputs.grammar import build_grammar, json_schema_of
from vllm.engine.structured_outputs.limits import (
    MAX_GRAMMAR_CHARS,
    SANDBOX_MEMORY_BYTES,
    SANDBOX_STACK_BYTES,
    parser_limits,
)
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.engine.structured_outputs.schema import SchemaFault, place_of_fault


def judge(constraint: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, str]:
    """{"grammar": text} for a constraint that compiles and lets an output begin, else {"error": why}.

    Beside the error of a schema stands its "place" in it.
    """
    try:
        grammar = build_grammar(constraint, tokenizer)
        if len(grammar) > MAX_GRAMMAR_CHARS:
            return {"error": f"it makes a grammar of {len(grammar)} characters; at most {MAX_GRAMMAR_CHARS} are taken"}
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
        if error := matcher.get_error():
            return {"error": error, "place": _place(constraint, tokenizer)}
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            return {"error": "no output matches it"}
    except SchemaFault as fault:
        return {"error": str(fault), "place": fault.place}
    except (ValueError, UnicodeError) as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    return {"grammar": grammar}


def _place(constraint: dict[str, Any], tokenizer: LLTokenizer) -> str:
    """Where in its schema a constraint that does not compile is at fault, if it has one."""
    schema = json_schema_of(constraint)
    if not isinstance(schema, dict):
        return ""

    def fault_of(part: Any) -> str:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(part), overrides={"coerce_one_of": True})
        return LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits()).get_error()

    return place_of_fault(schema, fault_of(schema), fault_of)


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
