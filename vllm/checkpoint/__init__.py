"""Reading what people have: safetensors directories, GGUF files, hub ids. Names to tensors, lazily, never pickle."""

from vllm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from vllm.checkpoint.config import context_length, normalise_config
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.tensor import Tensor

__all__ = ["Checkpoint", "CheckpointError", "Tensor", "context_length", "normalise_config", "open_checkpoint"]
