"""Log-probabilities in answers, as plain dicts; `vllm.entrypoints.openai.logprobs` makes them and has their rules."""

from __future__ import annotations

from typing_extensions import TypedDict


class TopLogprob(TypedDict):
    """A candidate for a token. bytes: None without a tokenizer."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Those of a chat's choice, one entry for each generated token."""

    content: list[TokenLogprob]


class CompletionLogProbs(TypedDict):
    """Those of a completion's choice, one entry for each token; None where none was computed."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(TypedDict):
    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""One entry for each prompt token, by token id; the first token has none."""
