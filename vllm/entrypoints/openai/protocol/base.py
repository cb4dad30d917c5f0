"""What all requests and responses share: how a request's fields are read, errors, usage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from vllm.entrypoints.fields import (
    Alias,
    Fields,
    Names,
    Unsupported,
    check_fields,
    in_terms_of,
    is_neutral,
    read_aliases,
    renamed,
)
from vllm.exceptions import VLLMValidationError

M = TypeVar("M", bound="OpenAIBaseModel")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_routes: dict[str, type[OpenAIBaseModel]] = {}
"""The request of each route that generates."""
_SAY_NOTHING = frozenset(
    (
        "background",
        "cache_control",
        "include",
        "include_reasoning",
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    )
)
"""Fields of some routes that would change no answer of another: labels and hints."""


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


def _fail_at_first_fault(schema: Any) -> None:
    """Let lists and objects be refused at the first wrong entry: a fault for each of thousands takes long to write."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        schema = list(schema.values())
    if isinstance(schema, (list, tuple)):
        for part in schema:
            _fail_at_first_fault(part)


class OpenAIBaseModel(BaseModel):
    """Base of the API's requests and their typed parts.

    route: of a request, where what belongs to another route is refused. unsupported, hints, aliases: see `fields`.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    route: ClassVar[str] = ""
    unsupported: ClassVar[dict[str, Unsupported]] = {}
    hints: ClassVar[dict[str, str]] = {}
    aliases: ClassVar[dict[str, Alias]] = {}
    _names: Names = PrivateAttr(default_factory=dict)
    _sent_to: str = PrivateAttr("")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_at_first_fault(schema)
        return schema

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.__dict__.get("route"):
            _routes[cls.route] = cls

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls: type[M], given: Any, handler: ModelWrapValidatorHandler[M]) -> M:
        if not isinstance(given, dict):
            return handler(given)
        data = dict(given)
        names = cls._in_own_terms(data)
        with in_terms_of(names):
            fields = Fields(cls.model_fields.keys(), cls.hints, cls.unsupported)
            check_fields(data, fields, cls.route or cls.__name__, elsewhere=cls._elsewhere)
        request = _told_in(names, lambda: handler(data)) if names else handler(data)
        request._names = names
        with in_terms_of(names):
            request._check()
        return request

    def _check(self) -> None:
        """What concerns several fields. Raises VLLMValidationError."""

    @classmethod
    def _in_own_terms(cls, data: dict[str, Any]) -> dict[str, str]:
        """Put what the client sent in terms of this model's fields. Returns its names of those."""
        return read_aliases(data, cls.aliases)

    @classmethod
    def _elsewhere(cls, name: str, value: Any) -> str | None:
        if not cls.route or name in _SAY_NOTHING:
            return None
        for route, other in _routes.items():
            if (field := other.model_fields.get(name)) is not None:
                asks = not is_neutral(value, (None, field.get_default()))
                return f"is a field of `{route}`, not of `{cls.route}`." if asks else None
        return None

    @property
    def names(self) -> Names:
        """The client's names of our fields, where they differ: for `in_terms_of`."""
        return self._names

    @property
    def sent_to(self) -> str:
        """The route that the client chose."""
        return self._sent_to or self.route or type(self).__name__

    def names_for(self, names: Names) -> Names:
        """Of another request that is made of this one. names: this one's fields, by those of the other."""
        return {**self._names, **{theirs: renamed(ours, self._names) for theirs, ours in names.items()}}

    @classmethod
    def from_fields(cls: type[M], sent_to: str, names: Names, **fields: Any) -> M:
        """Made of the fields of a request to another route. names: that one's names of them.

        Raises VLLMValidationError, with the fault's own words and the client's names.
        """
        request = _told_in(names, lambda: cls(**fields))
        request._names = {**request._names, **names}
        request._sent_to = sent_to
        return request


def _told_in(names: Names, make: Callable[[], M]) -> M:
    """Of faults of pydantic's, the first one, in the client's names."""
    try:
        return make()
    except ValidationError as error:
        with in_terms_of(names):
            raise _first_fault(error) from None


def _first_fault(error: ValidationError) -> VLLMValidationError:
    fault = error.errors(include_url=False, include_input=False)[0]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, VLLMValidationError):
        return cause
    place = ".".join(map(str, fault["loc"]))
    return VLLMValidationError(f"{place}: {fault['msg']}" if place else fault["msg"], parameter=place or None)


class ClosedModel(BaseModel):
    """Base of what the server itself sends: built in code, so nothing has to be looked for."""

    model_config = ConfigDict(protected_namespaces=())


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
    include_usage: bool | None = Field(
        False, description="End the stream with a chunk that has the usage and no choices."
    )
    continuous_usage_stats: bool | None = Field(False, description="Put the usage so far on every chunk.")
    hints: ClassVar[dict[str, str]] = {"include_obfuscation": "streams are not padded."}


def now() -> int:
    """`created` of a response: seconds since the epoch."""
    return int(time.time())
