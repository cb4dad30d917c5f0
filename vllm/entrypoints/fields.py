"""What becomes of the fields that a client sends, at any depth and on every route.

    known        honoured
    hint         says what would be welcome, and cannot be had: ignored, and logged
    unsupported  would change the answer, and cannot be had: refused by name, unless its value asks for nothing
    alias        another server's name of a field: read as that field
    elsewhere    a field of another route: refused, with that route
    misspelt     within an edit or two of a known name: refused, with that name
    unknown      most often a client's own bookkeeping: ignored, and logged

Likewise a list loses the elements that cannot be served (`usable`), and each loss is logged. Everything is logged once
for each name. Errors name fields as the client sent them: where a request is read in other terms than it was sent in,
`in_terms_of` translates back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, Protocol, TypeVar

from vllm.entrypoints.utils import nearest_field
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

logger = init_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAX_UNKNOWN_FIELDS = 64
_MAX_REMEMBERED = 1024
_noted: set[tuple[str, str, str]] = set()


class Unsupported(NamedTuple):
    """Why a field cannot be honoured, and the values that ask for nothing."""

    reason: str
    neutral: tuple[Any, ...] = (None,)


def _unchanged(value: Any) -> Any:
    return value


class Alias(NamedTuple):
    """Another name of a field.

    field: ours, or an entry of one (`structured_outputs.regex`).
    read: the value as ours, None if it asks for nothing; raises ValueError with what it must be.
    """

    field: str
    read: Callable[[Any], Any] = _unchanged


class Fields(NamedTuple):
    """What an object of a request may hold. hints: why nothing follows from each."""

    known: Collection[str]
    hints: Mapping[str, str] = {}
    unsupported: Mapping[str, Unsupported] = {}


class Unusable(Exception):
    """An element of a list that cannot be served, and that the others do not need. The message is the reason."""


def note(route: str, place: str, text: str) -> None:
    """Log once that something of a request had no effect. place: where it stands, with or without indices."""
    shown = repr(re.sub(r"\[\d+\]", "[]", place)[:128])[1:-1]  # a name is the client's, and may hold a new line
    key = (route, shown, text)
    if key not in _noted and len(_noted) < _MAX_REMEMBERED:
        _noted.add(key)
        logger.warning("%s: `%s` %s", *key)


def check_fields(
    given: Mapping[str, Any],
    fields: Fields,
    route: str,
    place: str = "",
    elsewhere: Callable[[str, Any], str | None] = lambda name, value: None,
) -> None:
    """Raises VLLMValidationError for the first field of `given` that is to be refused; notes those without effect.

    place: of the object in the request. elsewhere: why a field of another route is refused, if it is one.
    """
    for name, (reason, neutral) in fields.unsupported.items():
        if name in given and not is_neutral(given[name], neutral):
            raise refusal(_within(place, name), f"is not supported: {reason}")
    unknown = given.keys() - fields.known - fields.unsupported.keys()
    if len(unknown) > MAX_UNKNOWN_FIELDS:
        what = f"`{place}`" if place else "The request"
        raise VLLMValidationError(
            f"{what} has {len(unknown)} unknown fields; at most {MAX_UNKNOWN_FIELDS} are tolerated.",
            parameter=place or None,
        )
    if not unknown:
        return
    names = {*fields.known, *fields.unsupported, *fields.hints}
    for name in sorted(unknown):
        at = _within(place, name[:64])
        if name in fields.hints:
            if given[name]:
                note(route, at, f"has no effect: {fields.hints[name]}")
        elif why := elsewhere(name, given[name]):
            raise refusal(at, why)
        elif nearest := nearest_field(name, names):
            raise VLLMValidationError(
                f"Unknown field `{at}`. Did you mean `{_within(place, nearest)}`?", parameter=_within(place, name)
            )
        else:
            note(route, at, "is an unknown field and has no effect")


def is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(value == each and type(value) is type(each) for each in neutral)


def refusal(place: str, why: str) -> VLLMValidationError:
    return VLLMValidationError(f"`{place}` {why}", parameter=place)


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def read_aliases(data: MutableMapping[str, Any], aliases: Mapping[str, Alias]) -> dict[str, str]:
    """Put what stands under other names where it belongs; the client's name of each field that was so given."""
    names: dict[str, str] = {}
    for name in sorted(data.keys() & aliases.keys()):
        given, alias = data.pop(name), aliases[name]
        try:
            value = None if given is None else alias.read(given)
        except ValueError as error:
            raise refusal(name, f"must be {error}.") from None
        if value is not None:
            _put(data, alias.field, value, name)
            names[alias.field] = name
    return names


def _put(data: MutableMapping[str, Any], field: str, value: Any, name: str) -> None:
    top, _, entry = field.partition(".")
    if not entry:
        if data.get(top) not in (None, value):
            raise refusal(name, f"is another name of `{field}`: give one.")
        data[top] = value
        return
    given = data.get(top)
    holder = given if isinstance(given, dict) else {}
    if holder.get(entry) not in (None, value):
        raise refusal(name, f"is another name of `{field}`: give one.")
    data[top] = {**holder, entry: value}


def placed(items: Iterable[T], place: str) -> Iterator[tuple[str, T]]:
    """Each element of the list at `place`, with its own place."""
    return ((f"{place}[{i}]", item) for i, item in enumerate(items))


def usable(items: Iterable[tuple[str, T]], convert: Callable[[T, str], R], route: str) -> list[tuple[str, R]]:
    """What `convert(item, place)` makes of each, with its place, without those that are `Unusable`."""
    kept: list[tuple[str, R]] = []
    for place, item in items:
        try:
            kept.append((place, convert(item, place)))
        except Unusable as why:
            note(route, place, f"is left out: {why}")
    return kept


Names = Mapping[str, str]
"""The client's name of each field of ours that it sent under another one; also of entries (`tools[2].function`)."""


class Named(Protocol):
    """A request that knows what its client calls its fields."""

    @property
    def names(self) -> Names: ...


@contextlib.contextmanager
def in_terms_of(names: Names | Named) -> Iterator[None]:
    """Errors in here name fields as the client did. Of a request, `names` are asked for when there is an error."""
    try:
        yield
    except VLLMValidationError as error:
        known = names if isinstance(names, Mapping) else names.names
        if not known:
            raise
        parameter = None if error.parameter is None else renamed(error.parameter, known)
        raise VLLMValidationError(renamed(str(error), known), parameter=parameter, value=error.value) from None


def renamed(text: str, names: Names) -> str:
    """With the client's names. Names that are common words (`stop`) are taken for names at the beginning and in
    backquotes alone."""
    if not names:
        return text
    ours = sorted(names, key=len, reverse=True)
    pattern = rf"(?<![\w.])({'|'.join(map(re.escape, ours))})(?!\w)"

    def replace(match: re.Match[str]) -> str:
        is_name = re.search(r"[_.\[]", match[0]) or match.start() == 0 or text[match.start() - 1] == "`"
        return names[match[0]] if is_name else match[0]

    return re.sub(pattern, replace, text)
