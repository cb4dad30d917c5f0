"""`/v1/responses`: request and response.

A request amounts to a chat: `to_chat` gives the request of `/v1/chat/completions` that generates the output, so that
everything that is checked there is checked here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vllm.entrypoints.openai.protocol.base import ClosedModel, Unsupported
from vllm.entrypoints.openai.protocol.chat import MAX_MESSAGES, ChatCompletionRequest
from vllm.entrypoints.openai.protocol.sampling import UNSUPPORTED_SAMPLING, DrawFields
from vllm.exceptions import VLLMValidationError

LOGPROBS = "message.output_text.logprobs"
_NOT_FROM_HERE = frozenset({"metadata", "stream"})
_STATELESS = "conversations are kept by `previous_response_id`."


class ResponsesRequest(DrawFields):
    input: str | list[dict[str, Any]] = Field(
        description="A text, or items: messages, function_call, function_call_output, reasoning."
    )
    instructions: str | None = Field(None, description="The system message; not carried over to later responses.")
    max_output_tokens: int | None = Field(None, ge=1, description="Most tokens to generate. Default: what fits.")
    previous_response_id: str | None = Field(None, description="Go on with a stored response's conversation.")
    store: bool | None = Field(
        True, description="Keep the response. Only where VLLM_ENABLE_RESPONSES_API_STORE=1; the answer's `store` tells."
    )
    background: bool | None = Field(False, description="Answer at once; the response is fetched later. Needs `store`.")
    text: dict[str, Any] | None = Field(None, description="`format`: of type text, json_object or json_schema.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        None, description='"auto", "none", "required", or {"type": "function", "name": ...}.'
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call is given.")
    reasoning: dict[str, Any] | None = Field(None, description="`effort` is handed to the chat template.")
    include: list[str] | None = Field(None, description=f"`{LOGPROBS}` reports log-probabilities.")
    top_logprobs: int | None = Field(None, description="And of this many most likely tokens; needs `include`.")
    structured_outputs: dict[str, Any] | None = Field(
        None, description="Form of the output: one of json, regex, choice, grammar, json_object, structural_tag."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")

    unsupported: ClassVar[dict[str, Unsupported]] = {
        **UNSUPPORTED_SAMPLING,
        "background_options": Unsupported("a background response runs like any other."),
        "context_management": Unsupported("prompts are not compacted."),
        "conversation": Unsupported(_STATELESS),
        "enable_response_messages": Unsupported("use `/v1/chat/completions` with `return_prompt_text`.", (None, False)),
        "image": Unsupported("the model answers with text."),
        "max_tool_calls": Unsupported("there are no tools that run on the server."),
        "mm_processor_kwargs": Unsupported("the model takes text only.", (None, {})),
        "moderation": Unsupported("there is no moderation."),
        "n": Unsupported("a response is one output; use `/v1/chat/completions`.", (None, 1)),
        "previous_input_messages": Unsupported("send them as `input`."),
        "prompt": Unsupported("prompt templates are not stored here; send `input`."),
        "prompt_cache_options": Unsupported("equal prefixes are found by themselves."),
        "prompt_cache_retention": Unsupported("prefixes stay while there is room.", (None, "in_memory")),
        "request_id": Unsupported("ids of responses are the server's own; send the header X-Request-Id."),
        "stream_options": Unsupported("streams are not padded.", (None, {}, {"include_obfuscation": False})),
        "truncation": Unsupported("a conversation that is too long is refused.", (None, "disabled")),
    }

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(i, dict) for i in value)):
            if len(value) > MAX_MESSAGES and isinstance(value, list):
                raise _fault(f"`input` holds {len(value)} items; at most {MAX_MESSAGES} fit one request.", "input")
            return value
        raise _fault("`input` must be a text or a list of at least one item.", "input")

    @model_validator(mode="before")
    @classmethod
    def _check_request(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if data.get("background") and data.get("stream"):
                raise _fault("`background` cannot be combined with `stream`: fetch the response later.", "background")
            if data.get("top_logprobs") and LOGPROBS not in (data.get("include") or ()):
                raise _fault(f'`top_logprobs` needs `include`: ["{LOGPROBS}"].', "top_logprobs")
        return data

    @model_validator(mode="after")
    def _check_details(self) -> ResponsesRequest:
        for name in self.include or ():
            if name != LOGPROBS:
                raise _fault(f"`include` of {name[:64]!r} is not supported; known: {LOGPROBS}.", "include")
        _check_known(self.reasoning, "reasoning", {"effort": None, "summary": (None, "auto"), "generate_summary": ()})
        _check_known(self.text, "text", {"format": None, "verbosity": (None, "medium")})
        return self

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def to_chat(self, messages: list[dict[str, Any]]) -> ChatCompletionRequest:
        """The chat that generates the output. Raises VLLMValidationError."""
        fields = {name: getattr(self, name) for name in DrawFields.model_fields if name not in _NOT_FROM_HERE}
        if self.instructions is not None:
            messages = [{"role": "system", "content": self.instructions}, *messages]
        return ChatCompletionRequest.from_fields(
            **fields,
            messages=messages,
            stream=bool(self.stream),
            max_completion_tokens=self.max_output_tokens,
            tools=None if self.tools is None else [_chat_tool(tool, i) for i, tool in enumerate(self.tools)] or None,
            tool_choice=_chat_choice(self.tool_choice if self.tools or self.tool_choice != "auto" else None),
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=(self.reasoning or {}).get("effort"),
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            response_format=_chat_format((self.text or {}).get("format")),
            structured_outputs=self.structured_outputs,
            chat_template_kwargs=self.chat_template_kwargs,
        )


def _check_known(given: dict[str, Any] | None, name: str, known: dict[str, Any]) -> None:
    """known: for each entry the values that ask for nothing, or None if it is honoured."""
    for key, value in (given or {}).items():
        place = f"{name}.{key[:64]}"
        if key not in known:
            raise _fault(f"`{place}` is unknown; known: {', '.join(known)}.", place)
        neutral = known[key]
        if neutral is not None and value is not None and value not in neutral:
            raise _fault(f"`{place}` is not supported: it has no effect on this model.", place)


def _chat_tool(tool: dict[str, Any], i: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:32]
        raise _fault(f"`tools[{i}].type` {kind!r} is not supported: functions alone are.", f"tools[{i}].type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _chat_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        kind = str(choice.get("type"))[:32]
        raise _fault(f"`tool_choice.type` {kind!r} is not supported: name a function.", "tool_choice")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _chat_format(given: Any) -> dict[str, Any] | None:
    """A schema lies flat here, and under `json_schema` there."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _fault("`text.format` must be an object with `type`.", "text.format")
    if given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}
    return given


def _fault(message: str, place: str) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=place)


Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class InputTokensDetails(ClosedModel):
    """cache_write_tokens: always 0, since what is kept for later costs nothing."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(ClosedModel):
    reasoning_tokens: int = 0


class ResponseUsage(ClosedModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponsesResponse(ClosedModel):
    """output: items of type reasoning, message and function_call."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool = False
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    model: str
    output: list[dict[str, Any]] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any] = Field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = Field(default_factory=list)
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class DeletedResponse(ClosedModel):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
