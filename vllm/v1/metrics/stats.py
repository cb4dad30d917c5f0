"""vLLM's path of per-request statistics."""

from vllm.outputs import RequestStateStats

__all__ = ["RequestStateStats"]
