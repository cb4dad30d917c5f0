"""transformers' tokenizers, under vLLM's path, for programs that ask for one by name (lm-eval and the like).

The engine has its own, `LLM.get_tokenizer()`, which needs no transformers.
"""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError


def get_tokenizer(
    tokenizer_name: str,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **kwargs: Any,
) -> Any:
    """The transformers tokenizer of a directory or hub id. tokenizer_mode: auto, hf, or slow."""
    if trust_remote_code:
        raise VLLMValidationError(
            "trust_remote_code is refused: code that comes with a checkpoint is never run",
            parameter="trust_remote_code",
        )
    if tokenizer_mode not in ("auto", "hf", "slow"):
        raise VLLMValidationError(
            f"tokenizer_mode {tokenizer_mode!r} is unknown; known: auto, hf, slow", parameter="tokenizer_mode"
        )
    from transformers import AutoTokenizer

    if tokenizer_mode == "slow":
        kwargs["use_fast"] = False
    return AutoTokenizer.from_pretrained(tokenizer_name, *args, revision=revision, cache_dir=download_dir, **kwargs)
