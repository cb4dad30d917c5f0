"""vLLM's path of `LLMEngine`."""

from vllm.engine.llm_engine import LLMEngine

__all__ = ["LLMEngine"]
