"""`limit_mm_per_prompt`: how many images of one prompt a user allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.settings.options import parse_json_option

MODALITIES = ("image", "video", "audio")


def most_images(limits: Mapping[str, Any]) -> int | None:
    """Images of one prompt that `limit_mm_per_prompt` allows; None where it says nothing of them.

    A limit is a count, or vLLM's mapping with a `count` among hints for its profiler. Limits of modalities that no
    model here takes are kept by that. Raises ValueError for what is no limit.
    """
    counts = {}
    for modality, limit in limits.items():
        if modality not in MODALITIES:
            raise ValueError(
                f"limit_mm_per_prompt has {modality!r}, which is no modality; known: {', '.join(MODALITIES)}"
            )
        count = limit.get("count") if isinstance(limit, Mapping) else limit
        if isinstance(count, bool) or not ((isinstance(count, int) and count >= 0) or count is None):
            raise ValueError(
                f"limit_mm_per_prompt[{modality!r}]={limit!r} is no number of items. For example: "
                '{"image": 4}; 0 takes none'
            )
        counts[modality] = count
    return counts.get("image")


def parse_limits(text: str) -> dict[str, Any]:
    """Limits as written on a command line: a mapping, or `image=4,video=0`. Raises ValueError for anything else."""
    if text.lstrip().startswith("{") or "=" not in text:
        return parse_json_option(text)
    pairs = [pair.partition("=") for pair in text.split(",")]
    return {name.strip(): int(count) if count.strip().isdecimal() else count for name, _, count in pairs}
