"""`/v1/messages` and `/v1/messages/count_tokens`, in the form of Anthropic's API: requests and responses.

As with `/v1/responses`, a request amounts to a chat (`to_chat`).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from vllm.entrypoints.openai.protocol.base import ClosedModel, ErrorResponse, OpenAIBaseModel, Strings, Unsupported
from vllm.entrypoints.openai.protocol.chat import MAX_MESSAGES, ChatCompletionRequest
from vllm.exceptions import VLLMValidationError

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EPHEMERAL = "No effect: equal prefixes are found by themselves."
UNSUPPORTED: dict[str, Unsupported] = {
    "container": Unsupported("there are no containers."),
    "context_management": Unsupported("prompts are not edited."),
    "diagnostics": Unsupported("there are none."),
    "inference_geo": Unsupported("the server is where it is."),
    "mcp_servers": Unsupported("tools run at the client.", (None, [])),
    "speed": Unsupported("there is one speed.", (None, "standard")),
    "user_profile_id": Unsupported("there are no profiles."),
    "workspace_id": Unsupported("there are no workspaces."),
}


class PromptFields(OpenAIBaseModel):
    """What makes the prompt; all that `count_tokens` takes."""

    model: str | None = Field(None, description="Served model name. Default: the first served.")
    messages: list[dict[str, Any]] = Field(description="Turns of the user and the assistant; texts or blocks.")
    system: str | list[dict[str, Any]] | None = Field(None, description="The system message: a text or text blocks.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions: name, description, input_schema.")
    tool_choice: dict[str, Any] | None = Field(
        None, description="Of type auto, any, none, or tool with its name; disable_parallel_tool_use: at most one call."
    )
    thinking: dict[str, Any] | None = Field(
        None, description="Of type adaptive or disabled; needs --reasoning-parser. Told to the template."
    )
    output_config: dict[str, Any] | None = Field(
        None, description="`format`: of type json_schema, with `schema`. `effort` is handed to the chat template."
    )
    cache_control: dict[str, Any] | None = Field(None, description=_EPHEMERAL)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")

    unsupported: ClassVar[dict[str, Unsupported]] = UNSUPPORTED

    @field_validator("messages", mode="before")
    @classmethod
    def _check_messages(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
            raise _fault("`messages` must be a list of at least one message, each an object.", "messages")
        if len(value) > MAX_MESSAGES:
            raise _fault(f"`messages` holds {len(value)} messages; at most {MAX_MESSAGES} fit one request.", "messages")
        return value

    def to_chat(self, messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
        """messages: the conversation in a chat's form. Raises VLLMValidationError."""
        config = self.output_config or {}
        tools = [_chat_tool(tool, i) for i, tool in enumerate(self.tools or ())] or None
        choice, parallel = self._tool_choice(tools is not None)
        return ChatCompletionRequest.from_fields(
            model=self.model,
            messages=messages,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            response_format=_chat_format(config.get("format")),
            reasoning_effort=config.get("effort"),
            chat_template_kwargs=self._template_kwargs(),
            include_reasoning=(self.thinking or {}).get("type") != "disabled",
            **fields,
        )

    def _tool_choice(self, has_tools: bool) -> tuple[Any, bool | None]:
        """As a chat has it, and whether there may be several calls."""
        given = self.tool_choice
        if given is None or (not has_tools and given.get("type") in ("auto", "none")):
            return None, None
        parallel = False if given.get("disable_parallel_tool_use") else None
        if given.get("type") == "tool":
            return {"type": "function", "function": {"name": given.get("name")}}, parallel
        if given.get("type") not in _CHOICES:
            raise _fault("`tool_choice.type` must be auto, any, none or tool.", "tool_choice.type")
        return _CHOICES[given["type"]], parallel

    def _template_kwargs(self) -> dict[str, Any] | None:
        if self.thinking is None:
            return self.chat_template_kwargs
        kind = self.thinking.get("type")
        if kind == "enabled":
            raise _fault(
                '`thinking` of type enabled has a budget, which cannot be kept; use {"type": "adaptive"}.', "thinking"
            )
        if kind not in ("adaptive", "disabled"):
            raise _fault("`thinking.type` must be adaptive or disabled.", "thinking.type")
        return {"enable_thinking": kind == "adaptive", **(self.chat_template_kwargs or {})}


class MessagesRequest(PromptFields):
    max_tokens: int = Field(ge=1, description="Most tokens to generate.")
    stop_sequences: Strings | None = Field(None, description="Texts that end the output.")
    stream: bool | None = Field(False, description="Send the output in pieces, as server-sent events.")
    temperature: float | None = Field(None, description="0: greedy. Up to 2.")
    top_p: float | None = Field(None, description="Sample from the most likely tokens whose probabilities sum to this.")
    top_k: int | None = Field(None, description="Sample from this many most likely tokens; 0 or -1: no bound.")
    seed: int | None = Field(None, description="Makes the draws of this request repeatable.")
    min_p: float | None = Field(None, description="Drop tokens less likely than this share of the most likely one.")
    repetition_penalty: float | None = Field(None, description="Above 1 discourages tokens of prompt and output.")
    ignore_eos: bool = Field(False, description="Do not end at the end-of-sequence token.")
    priority: int = Field(0, description="Lower is sooner; needs --scheduling-policy priority.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of the same salt.")
    metadata: dict[str, Any] | None = Field(None, description="Labels of the client's; no effect.")
    service_tier: str | None = Field(None, description="No effect: there is one tier.")

    def to_chat(self, messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
        names = ("temperature", "top_p", "top_k", "seed", "min_p", "repetition_penalty", "ignore_eos", "priority")
        return super().to_chat(
            messages,
            max_completion_tokens=self.max_tokens,
            stop=self.stop_sequences,
            stream=bool(self.stream),
            cache_salt=self.cache_salt,
            **{name: getattr(self, name) for name in names},
            **fields,
        )


class CountTokensRequest(PromptFields):
    pass


def _chat_tool(tool: Any, i: int) -> dict[str, Any]:
    place = f"tools[{i}]"
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
        kind = str(tool.get("type") if isinstance(tool, dict) else tool)[:32]
        raise _fault(f"`{place}.type` {kind!r} is not supported: functions alone are.", f"{place}.type")
    fields = {"name": "name", "description": "description", "parameters": "input_schema", "strict": "strict"}
    function = {name: tool[field] for name, field in fields.items() if tool.get(field) is not None}
    return {"type": "function", "function": function}


def _chat_format(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise _fault("`output_config.format` must be of type json_schema, with `schema`.", "output_config.format")
    return {"type": "json_schema", "json_schema": {"schema": given.get("schema")}}


def _fault(message: str, place: str) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=place)


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(ClosedModel):
    """input_tokens: without those that were found in the cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessagesResponse(ClosedModel):
    """content: blocks of type thinking, text and tool_use."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]] = Field(default_factory=list)
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class CountTokensResponse(ClosedModel):
    input_tokens: int


class MessagesError(ClosedModel):
    """type: invalid_request_error, not_found_error, ..."""

    type: str
    message: str


class MessagesErrorResponse(ClosedModel):
    type: Literal["error"] = "error"
    error: MessagesError
    request_id: str | None = None


_ERROR_TYPES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}


def messages_error(response: ErrorResponse) -> dict[str, Any]:
    """An error in the shape of this API."""
    told = response.error
    fallback = "invalid_request_error" if told.code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    error = MessagesError(type=_ERROR_TYPES.get(told.code, fallback), message=told.message)
    return MessagesErrorResponse(error=error).model_dump()
