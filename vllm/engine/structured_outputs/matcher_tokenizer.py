"""What a grammar needs to know of a tokenizer, in a form that crosses processes.

A tokenizer may have tokens that its model cannot write: ids beyond the logits. A grammar must not count on them, so
they are taken out (`within`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

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


def within(tokenizer_json: str, vocab_size: int) -> str:
    """The tokenizer without its tokens from id `vocab_size` on, and without the merges that make them."""
    state = json.loads(tokenizer_json)
    state["added_tokens"] = [token for token in state.get("added_tokens") or [] if token["id"] < vocab_size]
    model = state["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        model["vocab"] = vocab[:vocab_size]
    elif isinstance(vocab, dict):
        model["vocab"] = {token: token_id for token, token_id in vocab.items() if token_id < vocab_size}
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if _parts_and_whole(merge) <= model["vocab"].keys()]
    return json.dumps(state, ensure_ascii=False)


def _parts_and_whole(merge: Any) -> set[str]:
    """merge: two tokens, or a text of both."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}
