"""What the library's `forward` returns, as arrays. One function a mode.

Token ids are in `.tokens` (older versions: only `.hidden_states`), logits in the same place where the device does not
sample; `.logits` is filled with `output_logits` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm.device.model_input import FloatArray, IntArray


def sampled_tokens(output: Any, num_rows: int) -> IntArray:
    """int32 [B]: the tokens that the device sampled, in the order of the call's rows."""
    tokens = _array(_payload(output)).reshape(-1)
    if tokens.size < num_rows:
        raise RuntimeError(f"the device returned {tokens.size} tokens for {num_rows} rows")
    return np.asarray(tokens[:num_rows], np.int32)


def last_logits(output: Any, num_rows: int, vocab_size: int, chunked: bool = False) -> FloatArray:
    """float32 [B, vocab_size]: logits of the token to sample. Padding of the vocabulary is cut off.

    chunked: rows lie side by side ([1, B, V]), as chunked prefill has them, and not below each other ([B, 1, V]).
    """
    logits = _array(_payload(output))
    if logits.ndim == 3:
        logits = logits[0] if chunked else logits[:, -1, :]
    if logits.shape[0] < num_rows or logits.shape[1] < vocab_size:
        raise RuntimeError(f"the device returned logits of shape {logits.shape} for {num_rows} rows of {vocab_size}")
    return np.ascontiguousarray(logits[:num_rows, :vocab_size], np.float32)


def accepted_tokens(output: Any, positions: IntArray, most: IntArray) -> tuple[IntArray, IntArray]:
    """Fused speculation: (tokens int32 [B, T], how many of each row are new).

    Counted by how far the device moved each row's position, since the padding value differs between versions (0 up to
    0.7, -1 from 0.8) and 0 is a token. positions: int32 [B], the last of the tokens that were given; most: int32 [B],
    how many tokens a row can use.
    """
    accepted = _array(output.fused_outputs[0])
    next_positions = _array(output.fused_outputs[-1]).reshape(-1)
    num_new = np.clip(next_positions[: len(positions)] - positions, 0, np.minimum(most, accepted.shape[1]))
    return np.asarray(accepted[: len(positions)], np.int32), np.asarray(num_new, np.int32)


def _payload(output: Any) -> Any:
    tokens = getattr(output, "tokens", None)
    return output.hidden_states if tokens is None else tokens


def _array(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        value = value[0]
    if str(value.dtype) == "torch.bfloat16":
        value = value.float()
    return value.detach().cpu().numpy()
