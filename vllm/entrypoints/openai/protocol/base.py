"""What all requests and responses share: how unknown and unsupported fields are met, errors, usage.

Unknown fields. A field that no request has is most often a client's own bookkeeping, so it is accepted and logged
once; but a field whose name is a misspelling of a known one (`vllm.entrypoints.utils.nearest_field`) would silently
change what is generated, so it is refused by name.

Unsupported fields. A field that we know but cannot honour is refused by name unless its value asks for nothing (the
`neutral` values).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vllm.entrypoints.utils import nearest_field
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

logger = init_logger(__name__)

M = TypeVar("M", bound="OpenAIBaseModel")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_UNKNOWN_FIELDS = 64
_MAX_REMEMBERED = 256
_warned: set[tuple[str, str]] = set()


def _items_are(cls: type, name: str) -> Callable[[Any], Any]:
    """Refuse a list at its first wrong item: a fault for each of millions would take gigabytes."""

    def check(value: Any) -> Any:
        if isinstance(value, list):
            for index, item in enumerate(value):
                if type(item) is not cls:
                    raise ValueError(f"item {index} must be {name}")
        return value

    return check


Strings = Annotated[list[str], BeforeValidator(_items_are(str, "a text"))]
TokenIds = Annotated[list[int], BeforeValidator(_items_are(int, "a token id"))]


class Unsupported(NamedTuple):
    """Why a known field cannot be honoured, and the values that ask for nothing."""

    reason: str
    neutral: tuple[Any, ...] = (None,)


class OpenAIBaseModel(BaseModel):
    """Base of the API's models. Subclasses list what they know and cannot do in `unsupported`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), ser_json_inf_nan="constants")
    unsupported: ClassVar[dict[str, Unsupported]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse_unsupported(data, cls.unsupported)
            check_unknown(cls, data)
        return data

    @classmethod
    def from_fields(cls: type[M], **fields: Any) -> M:
        """Made of another request's fields. Raises VLLMValidationError, with the fault's own words."""
        try:
            return cls(**fields)
        except ValidationError as error:
            fault = error.errors()[0]
            cause = fault.get("ctx", {}).get("error")
            if isinstance(cause, VLLMValidationError):
                raise cause from None
            place = ".".join(map(str, fault["loc"]))
            raise VLLMValidationError(f"{place}: {fault['msg']}", parameter=place) from None


class ClosedModel(BaseModel):
    """Base of what the server itself sends: built in code, so nothing has to be looked for."""

    model_config = ConfigDict(protected_namespaces=(), ser_json_inf_nan="constants")


def refuse_unsupported(data: dict[str, Any], unsupported: dict[str, Unsupported]) -> None:
    for name, (reason, neutral) in unsupported.items():
        if name in data and not any(data[name] == value and type(data[name]) is type(value) for value in neutral):
            raise VLLMValidationError(f"`{name}` is not supported: {reason}", parameter=name)


def check_unknown(cls: type[OpenAIBaseModel], data: dict[str, Any]) -> None:
    known = cls.model_fields.keys() | cls.unsupported.keys()
    unknown = data.keys() - known
    if len(unknown) > MAX_UNKNOWN_FIELDS:
        raise VLLMValidationError(
            f"The request has {len(unknown)} unknown fields; at most {MAX_UNKNOWN_FIELDS} are tolerated."
        )
    for name in sorted(unknown):
        if nearest := nearest_field(name, known):
            raise VLLMValidationError(f"Unknown field `{name}`. Did you mean `{nearest}`?", parameter=name)
        _warn_once(cls.__name__, name)


def _warn_once(model: str, name: str) -> None:
    key = (model, name[:64])
    if key not in _warned and len(_warned) < _MAX_REMEMBERED:
        _warned.add(key)
        logger.warning("%s: the unknown field %r has no effect", *key)


class ErrorInfo(ClosedModel):
    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(ClosedModel):
    """`{"error": {...}}`; `code` equals the HTTP status."""

    error: ErrorInfo


class PromptTokensDetails(ClosedModel):
    cached_tokens: int | None = None


class UsageInfo(ClosedModel):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: dict[str, int] | None = Field(
        None, description="`reasoning_tokens`, where a reasoning parser is on."
    )


class StreamOptions(OpenAIBaseModel):
    include_usage: bool = Field(False, description="End the stream with a chunk that has the usage and no choices.")
    continuous_usage_stats: bool = Field(False, description="Put the usage so far on every chunk.")
    unsupported: ClassVar[dict[str, Unsupported]] = {
        "include_obfuscation": Unsupported("streams are not padded.", (None, False)),
    }


def now() -> int:
    """`created` of a response: seconds since the epoch."""
    return int(time.time())
