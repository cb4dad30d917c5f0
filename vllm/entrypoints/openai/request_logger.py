"""What --enable-log-requests and --enable-log-outputs write. Off by default: prompts and outputs are people's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.renderer import RenderedPrompt
from vllm.logger import init_logger

logger = init_logger(__name__)


@dataclass(frozen=True)
class RequestLogger:
    """max_len: characters of a text, or token ids of a prompt, that are written; None: all."""

    inputs: bool = False
    outputs: bool = False
    max_len: int | None = None

    def log_inputs(self, request_id: str, prompts: Sequence[RenderedPrompt], params: Sequence[Any]) -> None:
        if not self.inputs:
            return
        for prompt, sampling_params in zip(prompts, params, strict=True):
            shown: Any = prompt.token_ids[: self.max_len] if prompt.text is None else prompt.text[: self.max_len]
            logger.info(
                "request %s: %d prompt tokens, %r, %s", request_id, len(prompt.token_ids), shown, sampling_params
            )

    def log_output(self, request_id: str, index: int, text: str, finish_reason: str | None) -> None:
        if self.outputs:
            logger.info("answer %s[%d]: %r, %s", request_id, index, text[: self.max_len], finish_reason)
