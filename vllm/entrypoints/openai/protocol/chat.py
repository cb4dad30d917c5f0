"""`/v1/chat/completions`: request and response."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from vllm.entrypoints.chat_output.forced_tools import calls_constraint, forces_calls
from vllm.entrypoints.fields import Alias, Names, Unsupported
from vllm.entrypoints.openai.protocol.base import ClosedModel, OpenAIBaseModel, UsageInfo
from vllm.entrypoints.openai.protocol.foreign import HINTS, thinking_switch
from vllm.entrypoints.openai.protocol.logprobs import ChatLogprobs, PromptLogprobs
from vllm.entrypoints.openai.protocol.sampling import UNSUPPORTED_SAMPLING, SamplingFields
from vllm.entrypoints.openai.protocol.tools import chat_tools
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

MAX_MESSAGES = 4096

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class TemplateFields(OpenAIBaseModel):
    """How messages become a prompt; shared with `/tokenize`."""

    messages: list[dict[str, Any]] = Field(description="The conversation: role, content, and what the template reads.")
    add_generation_prompt: bool = Field(True, description="End the prompt with the start of the assistant's turn.")
    continue_final_message: bool = Field(False, description="Go on with the last message instead of starting a turn.")
    add_special_tokens: bool = Field(
        False, description="Add the tokenizer's special tokens; templates write them already."
    )
    documents: list[dict[str, str]] | None = Field(None, description="Documents for templates that take them.")
    tools: list[dict[str, Any]] | None = Field(None, description="Tools for templates that take them.")
    chat_template: str | None = Field(
        None, description="A template of the request's own; needs --trust-request-chat-template."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")

    @classmethod
    def _in_own_terms(cls, data: dict[str, Any]) -> dict[str, str]:
        names = super()._in_own_terms(data)
        takes_choice = "tool_choice" in cls.model_fields
        choice = data.get("tool_choice") if takes_choice else None
        tools = chat_tools(data.get("tools"), choice, cls.route or cls.__name__)
        data["tools"] = tools.functions
        if takes_choice:
            data["tool_choice"] = tools.choice
        moved = tools.names("function").items()
        return {**names, **{ours: place for ours, place in moved if ours != place}}

    @field_validator("messages", mode="before")
    @classmethod
    def _check_messages(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value:
            raise VLLMValidationError("`messages` must be a list of at least one message.", parameter="messages")
        if len(value) > MAX_MESSAGES:
            raise VLLMValidationError(
                f"`messages` holds {len(value)} messages; at most {MAX_MESSAGES} fit one request.", parameter="messages"
            )
        if not all(isinstance(message, dict) for message in value):
            raise VLLMValidationError("Each message must be an object with `role` and `content`.", parameter="messages")
        return value

    @field_validator("chat_template_kwargs", mode="after")
    @classmethod
    def _check_kwargs(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS & (value or {}).keys()):
            raise VLLMValidationError(
                f"`chat_template_kwargs` must not set {', '.join(reserved)}: reserved names.",
                parameter="chat_template_kwargs",
            )
        return value

    def _check(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            raise VLLMValidationError(
                "`continue_final_message` needs `add_generation_prompt`: false; they contradict one another.",
                parameter="continue_final_message",
            )


class ChatCompletionRequest(TemplateFields, SamplingFields):
    max_completion_tokens: int | None = Field(None, ge=1, description="Most tokens to generate. Default: what fits.")
    max_tokens: int | None = Field(None, ge=1, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(False, description="Report log-probabilities of the generated tokens.")
    top_logprobs: int | None = Field(None, description="And of this many most likely ones; needs `logprobs`.")
    echo: bool = Field(False, description="Put the last message before the output when it has the same role.")
    tool_choice: str | dict[str, Any] | None = Field(
        None,
        description='"auto" (the default with `tools`) needs --enable-auto-tool-choice; "none": tools are only shown; '
        '"required", or a function: it must be called. Of type allowed_tools: only the tools that it lists.',
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call is given.")
    include_reasoning: bool = Field(True, description="Give the reasoning that a --reasoning-parser sets apart.")
    reasoning_effort: str | None = Field(None, description="Handed to the chat template.")
    return_prompt_text: bool | None = Field(None, description="Add the rendered prompt to the response.")

    route: ClassVar[str] = "/v1/chat/completions"
    hints: ClassVar[dict[str, str]] = {
        **HINTS,
        "prediction": "predicted outputs are not available.",
        "store": "completions are not stored.",
        "web_search_options": "there is no web search.",
    }
    aliases: ClassVar[dict[str, Alias]] = {
        **SamplingFields.aliases,
        "enable_thinking": Alias("chat_template_kwargs.enable_thinking"),
        "max_output_tokens": Alias("max_completion_tokens"),
        "thinking": Alias("chat_template_kwargs.enable_thinking", thinking_switch),
    }
    unsupported: ClassVar[dict[str, Unsupported]] = {
        **UNSUPPORTED_SAMPLING,
        "audio": Unsupported("the model answers with text."),
        "function_call": Unsupported("it gave way to `tool_choice`.", (None, "none")),
        "functions": Unsupported("they gave way to `tools`.", (None, [])),
        "mm_processor_kwargs": Unsupported("images are prepared as the checkpoint says.", (None, {})),
        "modalities": Unsupported("the model answers with text.", (None, ["text"])),
    }

    @model_validator(mode="before")
    @classmethod
    def _check_request(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _check_logprobs(data)
        return data

    _held_calls: StructuredOutputsParams | None = PrivateAttr(None)

    @property
    def wants_tool_calls(self) -> bool:
        """Whether calls are to be looked for in the output."""
        return self.tools is not None and self.tool_choice != "none"

    @property
    def holds_calls(self) -> bool:
        """Whether the output's form is made of `tools`."""
        return self._held_calls is not None or (self.wants_tool_calls and forces_calls(self.tool_choice))

    @property
    def names(self) -> Names:
        if not self.holds_calls:
            return {"prompt": "messages", **super().names}
        places = ("structured_outputs", "structured_outputs.json", "structured_outputs.grammar")
        return {"prompt": "messages", **self._names, **dict.fromkeys(places, "tools")}

    def constraint(self) -> StructuredOutputsParams | None:
        """Of the form that is asked for, or of the calls that must be made."""
        if self._held_calls is not None:
            return self._held_calls
        given = super().constraint()
        if not self.wants_tool_calls or not forces_calls(self.tool_choice):
            return given
        if given is not None:
            raise VLLMValidationError(
                "`tool_choice` required or of a function excludes other forms of the output.", parameter="tool_choice"
            )
        return calls_constraint(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False)

    def hold_calls(self, constraint: StructuredOutputsParams) -> None:
        """Have the calls that the output may hold, and the rest of it, keep to this instead of to what was asked."""
        self._held_calls = constraint

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _check_logprobs(data: dict[str, Any]) -> None:
    if data.get("top_logprobs") and not data.get("logprobs"):
        raise VLLMValidationError("`top_logprobs` needs `logprobs`: true.", parameter="top_logprobs")


class FunctionCall(ClosedModel):
    """arguments: the text of a JSON object."""

    name: str
    arguments: str


class ToolCallMessage(ClosedModel):
    id: str
    type: str = "function"
    function: FunctionCall


class ChatMessage(ClosedModel):
    """`reasoning_content` repeats `reasoning` under its older name. It and `tool_calls` are left out where empty."""

    role: str
    content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallMessage] | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        optional = ("reasoning_content", "tool_calls")
        return {name: value for name, value in fields.items() if value is not None or name not in optional}


class ChatCompletionResponseChoice(ClosedModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = "stop"
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionResponse(ClosedModel):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: UsageInfo
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
