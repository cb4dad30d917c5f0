"""vLLM's path of `AsyncLLM`."""

from vllm.engine.async_llm import AsyncLLM

__all__ = ["AsyncLLM"]
