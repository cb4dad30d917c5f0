"""What one grammar may cost, the same in the sandbox and in the engine's process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_CONSTRAINT_CHARS = 256 * 1024
"""Of a constraint, as JSON."""

MAX_GRAMMAR_CHARS = 1024 * 1024
"""Of the grammar made of it."""

MAX_REQUEST_GRAMMAR_CHARS = 16 * 1024 * 1024
"""Of a request's grammars: one an output."""

SANDBOX_STACK_BYTES = 1 << 20
COMPILER_STACK_BYTES = 64 << 20
"""Of the threads that compile. What recurses too deeply fails where it may."""

SANDBOX_MEMORY_BYTES = 1 << 30
"""Address space for compiling, beyond what the tokenizer takes."""

MAX_LEXER_STATES = 20_000
"""Of one or two kilobytes each; all requests of a grammar share them."""


def parser_limits() -> LLParserLimits:
    """The library's own, but for lexer states."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
