"""vLLM's path of the engine's errors."""

from vllm.exceptions import EngineDeadError, EngineGenerateError

__all__ = ["EngineDeadError", "EngineGenerateError"]
