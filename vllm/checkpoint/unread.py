"""Tensors of a checkpoint that nothing reads: which of them change what the model computes, and which do not.

A model's arithmetic is its config's; tensors that no op reads were put there by something that computes otherwise. A
bias that is left out gives other text without a word. So each tensor that is not read is one of

    harmless    caches of positions and masks, scales of activations and of KV, the second copy of a tied matrix, maps
                of draft vocabularies (`draft` reads them), biases and zero points that are all zero
    meaningful  biases, norms, zero points, orders of columns, scales, adapters, sinks, and every weight of a decoder
                layer: these refuse the checkpoint
    unknown     all others, such as heads for other tasks and towers for images: named in one warning
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vllm.checkpoint.checkpoint import Checkpoint
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.scaled import sidecars
from vllm.checkpoint.tensor import Tensor
from vllm.checkpoint.tensor_names import EMBEDDING, OUTPUT
from vllm.logger import init_logger

logger = init_logger(__name__)

_HARMLESS = re.compile(
    r"""(.*[._])?(
      inv_freq | (cos|sin)(_cached)? | masked_bias | position_ids | causal_mask | attention_mask
    | (k|v|q|kv|prob|input|output|act|activation)_(global_)?(scale|scales|zero_point|amax) | (input|weight)_scale_ub
    | t2d | d2t | num_batches_tracked
    )""",
    re.VERBOSE,
)
_MEANINGFUL = re.compile(
    r"""(.*[._])?(
      bias | g_idx | \w*zero_points? | qzeros | \w*scales? | \w*scale_inv | weight_scale_2 | scb | absmax
    | codebooks? | lut | qweight | weight_packed | weight_shape | lora_\w+(\.\w+)* | sinks? | \w*norm\w*(\.\w+)?
    | \w*(rot|hadamard)\w* | rope_factors_\w+\.weight
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_ADDED = re.compile(r"(.*[._])?(bias|\w*zero_points?)", re.IGNORECASE)
"""What is added to something: all zero, it changes nothing."""
_OTHER_PARTS = re.compile(
    r"(model\.)?(vis(ion|ual)|image|audio|speech|multi_?modal|mm_|talker|mtp|medusa|value_head|v_head|score|classifier|qa_)"
    r"\w*\..+",
)
"""Parts beside the decoder: towers and projectors, and heads for other tasks or for drafts."""
_LAYER_WEIGHT = re.compile(r"(model\.)?(layers|blk)\.(\d+)\..+")
_SHOWN = 3


def check_unread(checkpoint: Checkpoint, read: Collection[str]) -> None:
    """Raises CheckpointError if tensors of a meaning are not read; warns of unknown ones.

    read: names of those that are; what lies beside them (`scaled.sidecars`) is read with them. A layer beyond those
    that the checkpoint's own config announces is unknown.
    """
    tensors, num_layers = checkpoint.stored(), checkpoint.config.get("num_hidden_layers") or 0
    read = {*read, *(beside for name in (*read, OUTPUT) for beside in sidecars(name, tensors))}
    path = checkpoint.path
    meaningful: list[str] = []
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if name in read or _HARMLESS.fullmatch(name) or (name == OUTPUT and EMBEDDING in read):
            continue
        if _OTHER_PARTS.fullmatch(name):
            unknown.append(name)
            continue
        if _ADDED.fullmatch(name) and _is_zero_or_mask(tensor):
            continue
        layer = _LAYER_WEIGHT.fullmatch(name)
        if layer and int(layer[3]) >= num_layers:
            unknown.append(name)
        else:
            (meaningful if layer or _MEANINGFUL.fullmatch(name) else unknown).append(name)
    if meaningful:
        raise CheckpointError(
            f"{path} holds {_listed(meaningful)}, which this model's config has no use for: the model would compute "
            "something else than what it was trained as. Correct the config (attention_bias, mlp_bias, model_type, "
            "architectures), or take the tensors out of the files if they mean nothing"
        )
    if unknown:
        logger.warning("%s holds %s, which are not read", path, _listed(unknown))


def _is_zero_or_mask(tensor: Tensor) -> bool:
    """Masks of attention are called biases by some older models: truth values, or of more than two dimensions."""
    if tensor.format == "bool" or len(tensor.shape) > 2:
        return True
    return not tensor.float32().any()


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    if len(names) == 1:
        return f"the tensor {shown}"
    return f"{len(names)} tensors such as {shown}"
