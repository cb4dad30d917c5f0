"""What stands between users and engines, as protocols: an engine as servers see it, and a core as an engine sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from vllm.config import ModelConfig, VllmConfig
from vllm.core.contract import Capabilities
from vllm.engine.messages import EngineCoreRequest, StepOutput
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.engine.text.images import ImagePreparer
from vllm.exceptions import EngineDeadError
from vllm.inputs import PromptType
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams


class ChatTokenizer(Protocol):
    """What servers ask of a tokenizer. `engine.tokenizer.Tokenizer` is one."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def get_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str: ...

    def convert_ids_to_tokens(self, token_ids: list[int]) -> list[str]: ...

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any: ...


class HasRegistry(Protocol):
    @property
    def registry(self) -> CollectorRegistry: ...


class EngineClient(Protocol):
    """An engine, as servers and beam search see it. `AsyncLLM` is one."""

    @property
    def vllm_config(self) -> VllmConfig: ...

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def tokenizer(self) -> Any:
        """A `ChatTokenizer`; None with skip_tokenizer_init."""
        ...

    @property
    def images(self) -> ImagePreparer | None:
        """Prepares the images of prompts; None where the model takes none."""
        ...

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """What ends an output."""
        ...

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        """The checkpoint's defaults, as fields of `SamplingParams`."""
        ...

    @property
    def metrics(self) -> HasRegistry: ...

    @property
    def errored(self) -> bool: ...

    @property
    def dead_error(self) -> BaseException: ...

    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one request; closing the generator aborts it."""
        ...

    def check_params(self, params: SamplingParams) -> None:
        """Raises VLLMValidationError for parameters that no prompt can be run with."""
        ...

    async def check_structured_outputs(self, params: SamplingParams) -> None: ...

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine is dead or stuck."""
        ...

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool: ...

    def shutdown(self) -> None: ...


class CoreClient(Protocol):
    """An engine core, or a group of them, as an engine on one event loop sees it."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def executor_stats(self) -> dict[str, Any]:
        """Start-up seconds by phase, artifact and whether it was found, bytes by kind."""
        ...

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Why nothing can be asked of it any more."""
        ...

    def add_request(self, request: EngineCoreRequest) -> None: ...

    def set_grammar_tokenizer(self, tokenizer: GrammarTokenizer) -> None: ...

    def abort(self, req_ids: list[str]) -> None:
        """End requests. Their last outputs, if any, still come."""
        ...

    async def call(self, method: str, *args: Any) -> Any:
        """One of `core.CALLS`. Raises RuntimeError with the core's words if it fails."""
        ...

    def call_at_start(self, method: str) -> None:
        """The same, blocking, before anything is received."""
        ...

    async def receive(self) -> StepOutput:
        """The next outputs. Raises EngineDeadError once nothing more can come."""
        ...

    def check_health(self) -> None:
        """Raises EngineDeadError if it is dead or stuck."""
        ...

    def shutdown(self) -> None:
        """Safe to call twice."""
        ...
