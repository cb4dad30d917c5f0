"""Whether an output matrix is the embedding: what the config says, held against what the files hold."""

from __future__ import annotations

import numpy as np

from vllm.checkpoint.checkpoint import Checkpoint
from vllm.checkpoint.config import Config
from vllm.checkpoint.tensor import Tensor
from vllm.checkpoint.tensor_names import EMBEDDING, OUTPUT
from vllm.logger import init_logger

logger = init_logger(__name__)

_ROWS_AT_ONCE = 1024


def with_output_matrix(config: Config, checkpoint: Checkpoint) -> Config:
    """The config, untied where it ties an output matrix that the files hold with other values, as transformers does.

    Both matrices are read where the two are there.
    """
    if not config.get("tie_word_embeddings") or OUTPUT not in checkpoint or EMBEDDING not in checkpoint:
        return config
    if _are_equal(checkpoint):
        return config
    logger.warning(
        "%s ties its output matrix to its embedding (tie_word_embeddings), but %s has other values: it is used",
        checkpoint.path,
        OUTPUT,
    )
    return {**config, "tie_word_embeddings": False}


def _are_equal(checkpoint: Checkpoint) -> bool:
    one, other = checkpoint.get(EMBEDDING), checkpoint.get(OUTPUT)
    if one.shape != other.shape:
        return False
    if (one.format, one.row_order) == (other.format, None) and type(one) is type(other) is Tensor:
        step = _ROWS_AT_ONCE * one.num_bytes // max(one.num_rows, 1)
        pieces = range(0, one.num_bytes, max(step, 1))
        return all(np.array_equal(one.data[at : at + step], other.data[at : at + step]) for at in pieces)
    rows = range(0, one.num_rows, _ROWS_AT_ONCE)
    return all(
        (one.float32_rows(start, stop) == other.float32_rows(start, stop)).all()
        for start in rows
        for stop in [min(start + _ROWS_AT_ONCE, one.num_rows)]
    )
