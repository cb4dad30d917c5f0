"""The forms of a prompt: a text, token ids, or a dict that holds one of them and what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict


class _PromptOptions(TypedDict, total=False):
    """cache_salt: prefixes are shared only between prompts of the same salt.

    multi_modal_data: {"image": ...}, one or a list, of a text with as many image tokens, where the model takes images.
    """

    cache_salt: str
    multi_modal_data: Any
    mm_processor_kwargs: dict[str, Any] | None


class TextPrompt(_PromptOptions):
    prompt: str


class _OptionalText(_PromptOptions, total=False):
    prompt: str | None


class TokensPrompt(_OptionalText):
    """prompt: the text of the tokens, if known; it is only passed on to the output."""

    prompt_token_ids: list[int]


class EmbedsPrompt(_PromptOptions):
    """A prompt of embeddings. No target takes one; it is refused by name."""

    prompt_embeds: Any


SingletonPrompt = str | TextPrompt | TokensPrompt | EmbedsPrompt | list[int]
PromptType = SingletonPrompt
"""One prompt."""

Prompts = PromptType | Sequence[PromptType]
"""One prompt or several."""
