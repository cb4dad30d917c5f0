"""`CoreSampling`: the parameters of one output as the core and the device take them (`SamplingParams.for_core`)."""

from __future__ import annotations

import msgspec

from vllm.sample.forms import ReasoningGate


class CoreSampling(msgspec.Struct, tag="generate", omit_defaults=True):
    """Checked and resolved: there is no text in it, and nothing is left open. Decoding one checks nothing again."""

    columns: dict[str, int | float] = {}
    """Values of the table's columns that are not their defaults."""
    max_tokens: int | None = None
    """Most output tokens; None: what the context holds."""
    min_tokens: int = 0
    """No token ends the output before this many."""
    eos_token_ids: list[int] = []
    """Tokens that end the output, and are no stop reason; empty where they are ignored."""
    stop_token_ids: list[int] = []
    """Tokens that end the output, and are reported as its stop reason."""
    logprobs: int | None = None
    """Log-probabilities of this many most likely tokens, -1: of all; None: none at all."""
    prompt_logprobs: int | None = None
    """The same at each position of the prompt."""
    logprob_token_ids: list[int] = []
    """Tokens whose log-probabilities are reported, too."""
    logit_bias: dict[int, float] = {}
    """Token id -> what is added to its logit."""
    allowed_token_ids: list[int] | None = None
    """The only tokens that may be generated; None: all."""
    bad_words: list[list[int]] = []
    """Sequences of tokens that the output must not hold."""
    skip_reading_prefix_cache: bool = False
    """Compute all of the prompt."""
    reasoning_gate: ReasoningGate | None = None
    """Where a structured output begins behind the reasoning."""
