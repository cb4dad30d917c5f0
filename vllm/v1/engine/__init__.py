"""What crosses between the engine's processes, under vLLM's path."""

from vllm.core.outputs import EngineCoreOutput
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.messages import StepOutput as EngineCoreOutputs

__all__ = ["EngineCoreOutput", "EngineCoreOutputs", "EngineCoreRequest"]
