"""What a request is to do with its prompt: generate, or make a vector of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm.sample.core_sampling import CoreSampling


class CorePooling(msgspec.Struct, tag="pool", omit_defaults=True, frozen=True):
    """Make a vector of the prompt's hidden states; the request ends with its prompt."""

    pooling: Literal["last", "mean", "cls"] = "last"
    """Which hidden states, after the final norm: the last token's, the mean of all, the first token's."""
    normalize: bool = False
    """Divide the vector by its Euclidean length."""
    dimensions: int | None = None
    """Leading entries that are kept, before it is normalised; None: all."""
    skip_reading_prefix_cache: bool = False
    """Compute all of the prompt."""

    @property
    def needs_all_states(self) -> bool:
        """Whether a prefix whose KV is cached, but whose hidden states are gone, is of no use."""
        return self.pooling != "last"


Work = CoreSampling | CorePooling


def max_tokens(work: Work) -> int | None:
    """Most output tokens; None: what the context holds."""
    return 0 if isinstance(work, CorePooling) else work.max_tokens
