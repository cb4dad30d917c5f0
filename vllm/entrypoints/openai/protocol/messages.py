"""`/v1/messages` and `/v1/messages/count_tokens`, in the form of Anthropic's API: requests and responses.

As with `/v1/responses`, a request amounts to a chat (`to_chat`).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, create_model, field_validator

from vllm.entrypoints.fields import Alias, Fields, Unsupported, check_fields, refusal
from vllm.entrypoints.openai.protocol.base import ClosedModel, ErrorResponse, OpenAIBaseModel, Strings
from vllm.entrypoints.openai.protocol.chat import MAX_MESSAGES, ChatCompletionRequest
from vllm.entrypoints.openai.protocol.foreign import HINTS, SAMPLERS, TOKEN_ALIASES
from vllm.entrypoints.openai.protocol.parameters import FIELDS, parameter_fields
from vllm.entrypoints.openai.protocol.sampling import UNSUPPORTED_SAMPLING
from vllm.entrypoints.openai.protocol.tools import Tools, messages_tools
from vllm.sample.table import ROWS

MESSAGES_ROUTE = "/v1/messages"
_CACHE = "equal prefixes are found by themselves."
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "tool_choice.function.name": "tool_choice.name",
}
"""Of a chat's fields, in this API."""
_OF_VLLM = ("ec_transfer_params", "kv_transfer_params", "vllm_xargs", "watermarking")
_FORM_ELSEWHERE = "use `output_config.format` for a schema, and /v1/chat/completions for other forms."
_THINKING = Fields(("type",), {"budget_tokens": "the model is not told of it.", "display": "thinking is always given."})
_OUTPUT_CONFIG = Fields(("effort", "format"), {"task_budget": "the model is not told of it."})
_FORMAT = Fields(("type", "schema", "name", "description", "strict"))


class PromptFields(OpenAIBaseModel):
    """What makes the prompt; all that `count_tokens` takes."""

    model: str | None = Field(None, description="Served model name. Default: the first served.")
    messages: list[dict[str, Any]] = Field(description="Turns of the user and the assistant; texts or blocks.")
    system: str | list[dict[str, Any]] | None = Field(None, description="The system message: a text or text blocks.")
    tools: list[dict[str, Any]] | None = Field(
        None, description="Functions: name, description, input_schema. Tools of other types are left out."
    )
    tool_choice: dict[str, Any] | None = Field(
        None, description="Of type auto, any, none, or tool with its name; disable_parallel_tool_use: at most one call."
    )
    thinking: dict[str, Any] | None = Field(
        None, description="Of type adaptive, enabled or disabled: told to the template. A budget is not."
    )
    output_config: dict[str, Any] | None = Field(
        None, description="`format`: of type json_schema, with `schema`. `effort` is handed to the chat template."
    )
    cache_control: dict[str, Any] | None = Field(None, description=f"No effect: {_CACHE}")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")

    unsupported: ClassVar[dict[str, Unsupported]] = {
        **SAMPLERS,
        **dict.fromkeys(
            ("format", "grammar", "json_schema", "regex", "response_format", "structured_outputs"),
            Unsupported(_FORM_ELSEWHERE),
        ),
        **{name: UNSUPPORTED_SAMPLING[name] for name in _OF_VLLM},
        "container": Unsupported("there are no containers."),
    }
    hints: ClassVar[dict[str, str]] = {
        **HINTS,
        "betas": "what is known needs no header or field.",
        "context_management": "prompts are not edited.",
        "diagnostics": "there are none.",
        "inference_geo": "the server is where it is.",
        "mcp_servers": "tools run at the client.",
        "speed": "there is one speed.",
        "user_profile_id": "there are no profiles.",
        "workspace_id": "there are no workspaces.",
    }
    aliases: ClassVar[dict[str, Alias]] = {
        "enable_thinking": Alias("chat_template_kwargs.enable_thinking"),
        "output_format": Alias("output_config.format"),
        "reasoning_effort": Alias("output_config.effort"),
    }

    @field_validator("messages", mode="before")
    @classmethod
    def _check_messages(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
            raise refusal("messages", "must be a list of at least one message, each an object.")
        if len(value) > MAX_MESSAGES:
            raise refusal("messages", f"holds {len(value)} messages; at most {MAX_MESSAGES} fit one request.")
        return value

    def chat_tools(self) -> Tools:
        """Raises VLLMValidationError."""
        return messages_tools(self.tools, self.tool_choice, MESSAGES_ROUTE)

    def to_chat(self, messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
        """messages: the conversation in a chat's form. Raises VLLMValidationError."""
        config = self.output_config or {}
        check_fields(config, _OUTPUT_CONFIG, MESSAGES_ROUTE, "output_config")
        tools = self.chat_tools()
        return ChatCompletionRequest.from_fields(
            MESSAGES_ROUTE,
            self.names_for({**_NAMES, **tools.names(parameters="input_schema")}),
            model=self.model,
            messages=messages,
            tools=tools.functions,
            tool_choice=tools.choice,
            parallel_tool_calls=False if (self.tool_choice or {}).get("disable_parallel_tool_use") else None,
            response_format=_chat_format(config.get("format")),
            reasoning_effort=config.get("effort"),
            chat_template_kwargs=self._template_kwargs(),
            include_reasoning=(self.thinking or {}).get("type") != "disabled",
            **fields,
        )

    def _template_kwargs(self) -> dict[str, Any] | None:
        if self.thinking is None:
            return self.chat_template_kwargs
        check_fields(self.thinking, _THINKING, MESSAGES_ROUTE, "thinking")
        kind = self.thinking.get("type")
        if kind not in ("adaptive", "enabled", "disabled"):
            raise refusal("thinking.type", "must be adaptive, enabled or disabled.")
        return {"enable_thinking": kind != "disabled", **(self.chat_template_kwargs or {})}


_PARAMETERS = (*(name for name in FIELDS if ROWS[name].from_checkpoint), "seed", "ignore_eos")

if TYPE_CHECKING:
    _ParameterFields = PromptFields
else:
    _ParameterFields = create_model("_ParameterFields", __base__=PromptFields, **parameter_fields(_PARAMETERS))


class MessagesRequest(_ParameterFields):
    max_tokens: int = Field(ge=1, description="Most tokens to generate.")
    stop_sequences: Strings | None = Field(None, description="Texts that end the output.")
    stream: bool | None = Field(False, description="Send the output in pieces, as server-sent events.")
    priority: int = Field(0, description="Lower is sooner; needs --scheduling-policy priority.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of the same salt.")
    metadata: dict[str, Any] | None = Field(None, description="Labels of the client's; no effect.")
    service_tier: str | None = Field(None, description="No effect: there is one tier.")

    route: ClassVar[str] = MESSAGES_ROUTE
    aliases: ClassVar[dict[str, Alias]] = {
        **PromptFields.aliases,
        **dict.fromkeys(
            ("max_completion_tokens", "max_new_tokens", "max_output_tokens", "n_predict"), Alias("max_tokens")
        ),
        "random_seed": TOKEN_ALIASES["random_seed"],
        "stop": Alias("stop_sequences", lambda value: [value] if isinstance(value, str) else value),
    }

    def to_chat(self, messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
        return super().to_chat(
            messages,
            max_completion_tokens=self.max_tokens,
            stop=self.stop_sequences,
            stream=bool(self.stream),
            cache_salt=self.cache_salt,
            priority=self.priority,
            **{name: getattr(self, name) for name in _PARAMETERS},
            **fields,
        )


class CountTokensRequest(PromptFields):
    pass


def _chat_format(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise refusal("output_config.format", "must be of type json_schema, with `schema`.")
    check_fields(given, _FORMAT, MESSAGES_ROUTE, "output_config.format")
    if not isinstance(given.get("schema"), dict):
        raise refusal("output_config.format.schema", "must be a JSON schema.")
    return {"type": "json_schema", "json_schema": {"schema": given["schema"]}}


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
