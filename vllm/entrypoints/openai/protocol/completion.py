"""`/v1/completions`: request and response."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SkipValidation, field_validator

from vllm import envs
from vllm.entrypoints.fields import Alias, Unsupported
from vllm.entrypoints.openai.protocol.base import ClosedModel, UsageInfo
from vllm.entrypoints.openai.protocol.logprobs import CompletionLogProbs, PromptLogprobs
from vllm.entrypoints.openai.protocol.sampling import UNSUPPORTED_SAMPLING, SamplingFields
from vllm.exceptions import VLLMValidationError

DEFAULT_MAX_TOKENS = 16
Prompt = str | list[int]
"""One prompt: a text or its token ids."""


class CompletionRequest(SamplingFields):
    prompt: SkipValidation[str | list[str] | list[int] | list[list[int]]] = Field(
        description="One prompt or several: texts, or lists of token ids."
    )
    max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=0, description="Most tokens to generate; 0 only with `echo`. null: the default."
    )
    echo: bool | None = Field(False, description="Put the prompt before the completion.")
    logprobs: int | None = Field(None, description="Log-probabilities of this many most likely tokens.")
    add_special_tokens: bool = Field(
        True, description="Add the tokenizer's special tokens, such as BOS, to text prompts."
    )

    route: ClassVar[str] = "/v1/completions"
    aliases: ClassVar[dict[str, Alias]] = {
        **SamplingFields.aliases,
        "max_completion_tokens": Alias("max_tokens"),
        "max_output_tokens": Alias("max_tokens"),
    }
    unsupported: ClassVar[dict[str, Unsupported]] = {
        **UNSUPPORTED_SAMPLING,
        "suffix": Unsupported("the model has no fill-in-the-middle form.", (None, "")),
        "tools": Unsupported("use /v1/chat/completions.", (None, [])),
    }

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_prompt(cls, value: Any) -> Any:
        _check_prompt_form(value)
        return value

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _default_max_tokens(cls, value: Any) -> Any:
        return DEFAULT_MAX_TOKENS if value is None else value

    def _check(self) -> None:
        if self.max_tokens == 0 and not self.echo:
            raise VLLMValidationError("`max_tokens` must be at least 1; 0 needs `echo`: true.", parameter="max_tokens")

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, in order. Each gives `num_choices` choices."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def wants_output(self) -> bool:
        """False when only the prompt is to be echoed."""
        return self.max_tokens != 0


def _check_prompt_form(value: Any) -> None:
    """Refuse at the first fault, before every element is validated against every form."""
    if isinstance(value, str) and value:
        return
    if value in ("", []):
        raise VLLMValidationError("`prompt` is empty: give at least one character or token.", parameter="prompt")
    if not isinstance(value, list):
        raise _form_error()
    if isinstance(value[0], int):
        _check_token_ids(value)
        return
    if len(value) > envs.VLLM_MAX_COMPLETION_PROMPTS:
        raise VLLMValidationError(
            f"`prompt` holds {len(value)} prompts; at most {envs.VLLM_MAX_COMPLETION_PROMPTS} fit one request.",
            parameter="prompt",
        )
    for prompt in value:
        if not isinstance(prompt, type(value[0])) or not isinstance(prompt, (str, list)):
            raise _form_error()
        if not prompt:
            raise VLLMValidationError("`prompt` holds an empty prompt.", parameter="prompt")
        if isinstance(prompt, list):
            _check_token_ids(prompt)


def _check_token_ids(ids: list[Any]) -> None:
    if set(map(type, ids)) != {int}:
        raise _form_error()


def _form_error() -> VLLMValidationError:
    return VLLMValidationError(
        "`prompt` must be a text, a list of texts, a list of token ids, or a list of such lists.", parameter="prompt"
    )


class CompletionResponseChoice(ClosedModel):
    index: int
    text: str
    logprobs: CompletionLogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionResponse(ClosedModel):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionResponseChoice]
    system_fingerprint: str | None = None
    usage: UsageInfo
