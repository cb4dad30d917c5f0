"""The asynchronous engine under its older names."""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLMEngine
from vllm.exceptions import EngineDeadError as AsyncEngineDeadError

__all__ = ["AsyncEngineArgs", "AsyncEngineDeadError", "AsyncLLMEngine"]
