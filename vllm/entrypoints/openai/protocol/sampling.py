"""The sampling fields that requests share, and what becomes of them: `SamplingParams`.

A field that the request leaves out (or sets to null) takes the server's default (the checkpoint's generation
config), then that of `SamplingParams`. Ranges are checked by `SamplingParams` and by the engine's limits, in one
place for every front end; here is only what concerns the form of a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, create_model, model_validator

from vllm.entrypoints.fields import Alias, Unsupported
from vllm.entrypoints.openai.protocol.base import (
    INT64_MAX,
    INT64_MIN,
    OpenAIBaseModel,
    StreamOptions,
    TokenIds,
)
from vllm.entrypoints.openai.protocol.foreign import HINTS, SAMPLERS, TOKEN_ALIASES
from vllm.entrypoints.openai.protocol.parameters import FIELDS, parameter_fields
from vllm.entrypoints.openai.protocol.structured import FORM_ALIASES, StructuredFields
from vllm.exceptions import VLLMValidationError
from vllm.sample.table import ROWS
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

UNSUPPORTED_SAMPLING: dict[str, Unsupported] = {
    **SAMPLERS,
    "best_of": Unsupported("ask for `n` completions and choose among them.", (None, 1)),
    "kv_transfer_params": Unsupported("this server does not transfer KV caches."),
    "ec_transfer_params": Unsupported("this server does not transfer encoder caches."),
    "media_io_kwargs": Unsupported("images are prepared as the checkpoint says.", (None, {})),
    "prompt_embeds": Unsupported("prompts are text or token ids."),
    "repetition_detection": Unsupported("use `repetition_penalty`, `frequency_penalty` or `stop`."),
    "thinking_token_budget": Unsupported("the reasoning has no bound of its own; bound the output by `max_tokens`."),
    "watermarking": Unsupported("outputs are not watermarked.", (None, False)),
    "vllm_xargs": Unsupported("no logits processor that reads them is configured.", (None, {})),
    "extra_body": Unsupported(
        "it is an argument of the openai client. Put its entries at the top level of the request.", (None, {})
    ),
}


class _ModelField(OpenAIBaseModel):
    model: str | None = Field(None, description="Served model name. Default: the first served.")


if TYPE_CHECKING:

    class _ParameterFields(_ModelField):
        ignore_eos: bool
        include_stop_str_in_output: bool
        skip_special_tokens: bool

else:
    _ParameterFields = create_model("_ParameterFields", __base__=_ModelField, **parameter_fields(FIELDS))


class DrawFields(_ParameterFields):
    """Fields of every endpoint that generates: the parameters of the table that are fields of requests, how the output
    is delivered, and the client's own labels."""

    stream: bool | None = Field(False, description="Send the output in pieces, as server-sent events.")
    stream_interval: int | None = Field(None, ge=1, description="Tokens between two pieces. Default: the server's.")
    priority: int = Field(
        0, ge=INT64_MIN, le=INT64_MAX, description="Lower is sooner; needs --scheduling-policy priority."
    )
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of the same salt.")
    user: str | None = Field(None, description="A label of the client's; no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Labels of the client's; no effect.")
    service_tier: str | None = Field(None, description="No effect: there is one tier.")
    safety_identifier: str | None = Field(None, description="A label of the client's; no effect.")
    prompt_cache_key: str | None = Field(None, description="No effect: equal prefixes are found by themselves.")


class SamplingFields(StructuredFields, DrawFields):
    """Fields common to `/v1/completions` and `/v1/chat/completions`."""

    use_beam_search: bool = Field(False, description="Find the `n` most likely outputs instead of drawing them.")
    length_penalty: float = Field(1.0, description="Of beam search: above 1 prefers longer outputs.")
    n: int | None = Field(1, description=ROWS["n"].help)
    prompt_logprobs: int | None = Field(None, description=ROWS["prompt_logprobs"].help)
    logprob_token_ids: TokenIds | None = Field(None, description=ROWS["logprob_token_ids"].help)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description=ROWS["truncate_prompt_tokens"].help)
    truncation_side: Literal["left", "right"] | None = Field(None, description="Which end is cut off. Default: left.")
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = Field(None, description="Name tokens in logprobs by `token_id:<id>`.")
    return_token_ids: bool | None = Field(None, description="Add token ids to the response.")
    request_id: str | None = Field(
        None, description="Part of the response's id. The header X-Request-Id goes before it."
    )

    unsupported: ClassVar[dict[str, Unsupported]] = UNSUPPORTED_SAMPLING
    hints: ClassVar[dict[str, str]] = HINTS
    aliases: ClassVar[dict[str, Alias]] = {**TOKEN_ALIASES, **FORM_ALIASES}

    @classmethod
    def _in_own_terms(cls, data: dict[str, Any]) -> dict[str, str]:
        if data.get("best_of") == data.get("n"):
            data.pop("best_of", None)
        return super()._in_own_terms(data)

    @model_validator(mode="before")
    @classmethod
    def _check_form(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _check_stream(data)
        return data

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def truncated(self) -> Literal["left", "right"] | None:
        """Which end of a prompt that is too long is cut off, if one is."""
        return None if self.truncate_prompt_tokens is None else self.truncation_side or "left"

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return (
            self.include_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        )

    def beam_search_params(self, max_tokens: int) -> BeamSearchParams:
        return BeamSearchParams(
            beam_width=self.num_choices,
            max_tokens=max_tokens,
            ignore_eos=self.ignore_eos,
            length_penalty=self.length_penalty,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
        )

    def _check_beam_search(self) -> None:
        """Raises VLLMValidationError for what beam search would not heed."""
        for name in _NOT_WITH_BEAMS:
            value = getattr(self, name, None)
            if value not in (None, False, [], {}, 0) and (name not in ROWS or value != ROWS[name].default):
                raise VLLMValidationError(f"`{name}` cannot be combined with `use_beam_search`.", parameter=name)
        if self.constraint() is not None:
            raise VLLMValidationError(
                "Structured outputs cannot be combined with `use_beam_search`.", parameter="use_beam_search"
            )

    def build_sampling_params(
        self,
        max_tokens: int,
        defaults: dict[str, Any],
        *,
        logprobs: int | None,
        prompt_logprobs: int | None,
    ) -> SamplingParams:
        """What the engine is asked for. `defaults`: the server's. Raises VLLMValidationError for a wrong value."""
        if self.use_beam_search:
            self._check_beam_search()
            return SamplingParams(
                temperature=0.0,
                max_tokens=max_tokens,
                logprobs=logprobs,
                skip_special_tokens=self.skip_special_tokens,
            )
        given = {
            name: value
            for name in FIELDS
            if (value := getattr(self, name)) is not None or (value := defaults.get(name)) is not None
        }
        return SamplingParams.from_optional(
            n=self.num_choices,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logprob_token_ids=self.logprob_token_ids,
            structured_outputs=self.constraint(),
            output_kind=RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY,
            stream_interval=self.stream_interval,
            **given | {"logit_bias": _token_bias(given.get("logit_bias"))},
        )


_NOT_WITH_BEAMS = (
    *(name for name in FIELDS if not ROWS[name].with_beams),
    "prompt_logprobs",
    "logprob_token_ids",
    "stream",
    "echo",
)


def _check_stream(data: dict[str, Any]) -> None:
    if data.get("stream_options") is not None and not data.get("stream"):
        raise VLLMValidationError("`stream_options` can only be used with `stream`: true.", parameter="stream_options")
    if data.get("stream") and data.get("prompt_logprobs") is not None:
        raise VLLMValidationError(
            "`prompt_logprobs` are not available with `stream`: true.", parameter="prompt_logprobs"
        )


def _token_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    return {_token_id(token): value for token, value in bias.items()}


def _token_id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise VLLMValidationError(
            f"`logit_bias` maps token ids to biases; {text[:32]!r} is not a token id.", parameter="logit_bias"
        ) from None
