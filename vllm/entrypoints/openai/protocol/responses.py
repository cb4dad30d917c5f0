"""`/v1/responses`: request and response.

A request amounts to a chat: `to_chat` gives the request of `/v1/chat/completions` that generates the output, so that
everything that is checked there is checked here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vllm.entrypoints.fields import (
    Alias,
    Fields,
    Unsupported,
    Unusable,
    check_fields,
    placed,
    refusal,
    usable,
)
from vllm.entrypoints.openai.protocol.base import ClosedModel
from vllm.entrypoints.openai.protocol.chat import MAX_MESSAGES, ChatCompletionRequest
from vllm.entrypoints.openai.protocol.foreign import HINTS, TOKEN_ALIASES
from vllm.entrypoints.openai.protocol.sampling import UNSUPPORTED_SAMPLING, DrawFields
from vllm.entrypoints.openai.protocol.structured import FORM_ALIASES
from vllm.entrypoints.openai.protocol.tools import Tools, responses_tools

LOGPROBS = "message.output_text.logprobs"
_NOT_FROM_HERE = frozenset({"metadata", "stream"})
_STATELESS = "conversations are kept by `previous_response_id`."
_REASONING = Fields(
    ("effort",),
    {"summary": "reasoning is given as text.", "generate_summary": "reasoning is given as text."},
)
_TEXT = Fields(("format",), {"verbosity": HINTS["verbosity"]})
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function.name": "tool_choice.name",
    "truncate_prompt_tokens": "truncation",
}
"""Of a chat's fields, in this API."""


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
    tools: list[dict[str, Any]] | None = Field(
        None, description="Functions that the model may call, and namespaces of them; other tools are left out."
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description='"auto", "none", "required", {"type": "function", "name": ...}, or of type allowed_tools.'
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call is given.")
    reasoning: dict[str, Any] | None = Field(None, description="`effort` is handed to the chat template.")
    include_reasoning: bool = Field(True, description="Give the reasoning that a --reasoning-parser sets apart.")
    include: list[str] | None = Field(
        None, description=f"`{LOGPROBS}` reports log-probabilities; the others have nothing to add."
    )
    top_logprobs: int | None = Field(None, description="And of this many most likely tokens; needs `include`.")
    structured_outputs: dict[str, Any] | None = Field(
        None, description="Form of the output: one of json, regex, choice, grammar, json_object, structural_tag."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: a conversation that is too long loses its beginning. disabled: it is refused."
    )

    route: ClassVar[str] = "/v1/responses"
    hints: ClassVar[dict[str, str]] = {
        **HINTS,
        "background_options": "a background response runs like any other.",
        "context_management": "prompts are not compacted.",
        "max_tool_calls": "no tools run on the server.",
        "moderation": "there is no moderation.",
        "prompt_cache_options": "equal prefixes are found by themselves.",
        "request_id": "ids of responses are the server's own; send the header X-Request-Id.",
        "stream_options": "streams are not padded.",
    }
    aliases: ClassVar[dict[str, Alias]] = {
        **{name: alias for name, alias in TOKEN_ALIASES.items() if alias.field != "max_tokens"},
        **FORM_ALIASES,
        **dict.fromkeys(
            ("max_completion_tokens", "max_new_tokens", "max_tokens", "n_predict"), Alias("max_output_tokens")
        ),
        "enable_thinking": Alias("chat_template_kwargs.enable_thinking"),
        "reasoning_effort": Alias("reasoning.effort"),
    }
    unsupported: ClassVar[dict[str, Unsupported]] = {
        **UNSUPPORTED_SAMPLING,
        "conversation": Unsupported(_STATELESS),
        "enable_response_messages": Unsupported("use `/v1/chat/completions` with `return_prompt_text`.", (None, False)),
        "image": Unsupported("the model answers with text."),
        "mm_processor_kwargs": Unsupported("images are prepared as the checkpoint says.", (None, {})),
        "n": Unsupported("a response is one output; use `/v1/chat/completions`.", (None, 1)),
        "previous_input_messages": Unsupported("send them as `input`."),
        "response_format": Unsupported("use `text.format`.", (None, {"type": "text"})),
        "system": Unsupported("use `instructions`."),
        "logprobs": Unsupported(f'use `include`: ["{LOGPROBS}"].', (None, False)),
        "messages": Unsupported("send them as `input`."),
        "prompt": Unsupported("prompt templates are not stored here; send `input`."),
    }

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(i, dict) for i in value)):
            if len(value) > MAX_MESSAGES and isinstance(value, list):
                raise refusal("input", f"holds {len(value)} items; at most {MAX_MESSAGES} fit one request.")
            return value
        raise refusal("input", "must be a text or a list of at least one item.")

    @model_validator(mode="before")
    @classmethod
    def _check_request(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if data.get("background") and data.get("stream"):
                raise refusal("background", "cannot be combined with `stream`: fetch the response later.")
            if data.get("top_logprobs") and LOGPROBS not in (data.get("include") or ()):
                raise refusal("top_logprobs", f'needs `include`: ["{LOGPROBS}"].')
        return data

    def _check(self) -> None:
        usable(placed(self.include or (), "include"), _known_include, self.route)
        check_fields(self.reasoning or {}, _REASONING, self.route, "reasoning")
        check_fields(self.text or {}, _TEXT, self.route, "text")

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def chat_tools(self) -> Tools:
        """Raises VLLMValidationError."""
        return responses_tools(self.tools, self.tool_choice, self.route)

    def to_chat(self, messages: list[dict[str, Any]], tools: Tools) -> ChatCompletionRequest:
        """The chat that generates the output. Raises VLLMValidationError."""
        fields = {name: getattr(self, name) for name in DrawFields.model_fields if name not in _NOT_FROM_HERE}
        if self.instructions is not None:
            messages = [{"role": "system", "content": self.instructions}, *messages]
        return ChatCompletionRequest.from_fields(
            self.route,
            self.names_for({**_NAMES, **tools.names()}),
            **fields,
            messages=messages,
            stream=bool(self.stream),
            max_completion_tokens=self.max_output_tokens,
            tools=tools.functions,
            tool_choice=tools.choice,
            parallel_tool_calls=self.parallel_tool_calls,
            include_reasoning=self.include_reasoning,
            reasoning_effort=(self.reasoning or {}).get("effort"),
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            truncate_prompt_tokens=-1 if self.truncation == "auto" else None,
            response_format=_chat_format((self.text or {}).get("format")),
            structured_outputs=self.structured_outputs,
            chat_template_kwargs=self.chat_template_kwargs,
        )


def _known_include(name: str, place: str) -> str:
    if name != LOGPROBS:
        raise Unusable(f"there is no {name[:64]!r}; known is {LOGPROBS!r}")
    return name


def _chat_format(given: Any) -> dict[str, Any] | None:
    """A schema lies flat here, and under `json_schema` there."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise refusal("text.format", "must be an object with `type`.")
    if given.get("type") != "json_schema":
        return given
    if not isinstance(given.get("schema"), dict):
        raise refusal("text.format.schema", "must be a JSON schema.")
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


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
    frequency_penalty: float | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    model: str
    output: list[dict[str, Any]] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    presence_penalty: float | None = None
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
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class CountedInput(ClosedModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class DeletedResponse(ClosedModel):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
