"""A small target and a draft of it, for the examples of speculative decoding."""

import sys
from pathlib import Path


def small_pair(kind: str) -> tuple[str, str]:
    """Directories of a Llama of six layers and its draft, "draft" or "eagle"; trained here unless they are there.

    On text that ships with Python, in a few minutes, once. PyTorch and transformers are needed for it.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from train_drafts import make_drafts

    made = make_drafts("tiny", (kind,))
    return made["target"]["directory"], made[kind]["directory"]
