"""What a grammar needs to know of a tokenizer, in a form that crosses processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarTokenizer(msgspec.Struct, tag="grammar_tokenizer"):
    """tokenizer_json: as the library `tokenizers` writes it. vocab_size: of the model's logits."""

    tokenizer_json: str
    vocab_size: int
    num_tokens: int
    eos_token_ids: list[int]

    def build(self) -> LLTokenizer:
        """Takes some tenths of a second for 50 000 tokens, and holds the interpreter's lock for as long.

        Raises ValueError for a tokenizer that cannot be matched.
        """
        from llguidance import LLTokenizer

        size = max(self.vocab_size, self.num_tokens)
        return LLTokenizer(self.tokenizer_json, n_vocab=size, eos_token=self.eos_token_ids or None)
