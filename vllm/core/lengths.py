"""How long a request may be, and how many KV blocks it may come to hold."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.core.request import Request


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """All in tokens but num_blocks."""

    max_model_len: int
    """Of a sequence, prompt and output together."""
    max_prompt_len: int
    """The longest compiled prompt."""
    max_step_tokens: int | None
    """What a step computes at most, where a prompt must be computed whole in one; None where it may come in pieces."""
    num_lookahead_tokens: int
    """Drafts whose KV is written beyond the last token."""
    block_size: int
    num_blocks: int
    """Of the whole KV cache."""

    def plan(self, request: Request) -> None:
        """Set the length and the KV blocks that a request cannot exceed.

        Raises ValueError for one that no state of the queue and the pool would let run, saying why.
        """
        prompt_len = request.num_prompt_tokens
        self._check_prompt(prompt_len, num_output=int(request.max_tokens != 0))
        max_tokens = request.max_tokens
        wanted = self.max_model_len if max_tokens is None else prompt_len + max_tokens
        total = min(wanted, self.max_model_len)
        last_slot = min(total + self.num_lookahead_tokens, self.max_model_len)
        num_blocks = -(-last_slot // self.block_size)
        if num_blocks > self.num_blocks:
            raise ValueError(
                f"{prompt_len} tokens of prompt and up to {total - prompt_len} of output need {num_blocks} KV blocks "
                f"of {self.block_size} tokens, but there are {self.num_blocks}; lower max_tokens, shorten the prompt "
                "or raise num_gpu_blocks_override"
            )
        request.max_total_tokens, request.max_num_blocks = total, num_blocks

    def _check_prompt(self, prompt_len: int, num_output: int) -> None:
        """num_output: tokens that must fit behind the prompt."""
        if not prompt_len:
            raise ValueError("the prompt is empty; at least one token is needed")
        if prompt_len + num_output > self.max_model_len:
            room = f"{self.max_model_len - 1} and one of output" if num_output else f"{self.max_model_len}"
            raise ValueError(
                f"the prompt has {prompt_len} tokens, but max_model_len={self.max_model_len} leaves room for {room}; "
                "shorten the prompt or raise max_model_len"
            )
        if prompt_len > self.max_prompt_len:
            raise ValueError(
                f"the prompt has {prompt_len} tokens, but the longest compiled prompt has {self.max_prompt_len} "
                "(max_context_length); shorten the prompt or compile for longer ones"
            )
        if self.max_step_tokens is not None and prompt_len > self.max_step_tokens:
            raise ValueError(
                f"the prompt has {prompt_len} tokens, but a step computes whole prompts of at most "
                f"max_num_batched_tokens={self.max_step_tokens}; shorten the prompt, raise the limit or enable "
                "chunked prefill"
            )
