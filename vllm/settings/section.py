"""Sections: frozen dataclasses whose fields are typed, range-checked and described once.

A field made by `key` or `derived` reads its value by the field's annotation, strictly (a bool is not an int, "4" is not
4), and knows its range and help text. Building a section checks everything and raises one `NeuronConfigError` with all
faults. Nothing given is mutated; nested sections are read from mappings.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from vllm.settings.faults import NOTHING, Faults, NeuronConfigError, nearest


class _Derived:
    def __repr__(self) -> str:
        return "DERIVED"


DERIVED: Any = _Derived()
"""Default of fields whose value follows from others unless it is given."""


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    accelerator_only: bool = False,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """A field with a fixed default.

    accelerator_only: shapes the accelerator's programs and nothing that a user of another target could see.
    read: turns a given value into the field's type before anything is checked; raises ValueError.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "accelerator_only": accelerator_only,
        "read": read,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def derived(rule: Callable[[Any], Any], text: str, help: str, **limits: Any) -> Any:
    """A field that `rule(section)` fills when it is not given; `text` says the rule in documentation."""
    made = key(DERIVED, help, **limits)
    made.metadata = types.MappingProxyType({**made.metadata, "rule": rule, "rule_text": text})
    return made


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key, for documentation. `group` is the first line of the docstring of the class that declares it."""

    name: str
    type: str
    default: str
    help: str
    group: str
    accelerator_only: bool


S = TypeVar("S", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Section:
    """notices: what was adjusted while the section was built, as sentences for the log."""

    notices: tuple[str, ...] = field(default=(), init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        faults = Faults()
        self._settle(faults)
        faults.raise_if_any(self._what())

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Build from a mapping. Unknown keys are faults that name the nearest known one."""
        faults = Faults()
        section = cls.examined(values, faults)
        faults.raise_if_any(cls._what())
        return section

    @classmethod
    def examined(cls: type[S], values: Mapping[str, Any], faults: Faults) -> S:
        """The same, without raising: keys at fault hold their defaults, so that the rest can be judged."""
        own = Faults()
        known = key_names(cls)
        for name in values:
            if name not in known:
                why, fix = cls._advice(str(name)) or ("unknown key", nearest(str(name), known))
                own.unreadable(str(name), NOTHING, why, fix)
        section = object.__new__(cls)
        for item in dataclasses.fields(cls):
            section._set(item.name, values[item.name] if item.name in values and item.init else _default(item))
        section._settle(own)
        faults.absorb(own)
        return section

    def to_dict(self) -> dict[str, Any]:
        """Every key in order of declaration, as JSON types only (infinity as the text "inf")."""
        return {item.name: plain(getattr(self, item.name)) for item in keys(type(self))}

    def changed(self) -> dict[str, Any]:
        """Keys whose value is neither the default nor what the default's rule gives."""
        return {item.name: getattr(self, item.name) for item in keys(type(self)) if self._is_changed(item)}

    @classmethod
    def describe(cls) -> list[KeyInfo]:
        return [_describe(cls, item) for item in keys(cls)]

    @classmethod
    def _what(cls) -> str:
        """What an error calls this section."""
        return cls.__name__

    @classmethod
    def _advice(cls, name: str) -> tuple[str, str] | None:
        """(why, fix) for an unknown key about which more can be said than its nearest neighbour."""
        return None

    def _check(self, faults: Faults) -> None:
        """Checks over several keys. All values are of their types; those at fault hold their defaults."""

    def _settle(self, faults: Faults) -> None:
        self._read(faults)
        self._derive()
        self._check(faults)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _notice(self, text: str) -> None:
        self._set("notices", (*self.notices, text))

    def _is_changed(self, item: dataclasses.Field[Any]) -> bool:
        rule = item.metadata.get("rule")
        return bool(getattr(self, item.name) != (rule(self) if rule else _default(item)))

    def _read(self, faults: Faults) -> None:
        hints = _hints(type(self))
        for item in keys(type(self)):
            given = getattr(self, item.name)
            if given is DERIVED:
                continue
            try:
                self._set(item.name, _read_key(given, hints[item.name], item.metadata))
            except NeuronConfigError as error:
                faults.extend(error.faults, prefix=f"{item.name}.")
                faults.mark_unreadable(item.name)
                self._set(item.name, _default(item))
            except ValueError as error:
                faults.unreadable(item.name, given, str(error))
                self._set(item.name, _default(item))

    def _derive(self) -> None:
        for item in keys(type(self)):
            if getattr(self, item.name) is DERIVED:
                self._set(item.name, item.metadata["rule"](self))


def keys(cls: type[Section]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a section that users may set, in order of declaration."""
    return tuple(item for item in dataclasses.fields(cls) if "help" in item.metadata)


def key_names(cls: type[Section]) -> list[str]:
    return [item.name for item in keys(cls)]


def _hints(cls: Any) -> dict[str, Any]:
    return _cached_hints(cls)


@functools.cache
def _cached_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _read_key(given: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    value = _read_value(limits["read"](given) if limits["read"] else given, hint)
    if value is None:
        return None
    if limits["choices"] and value not in limits["choices"]:
        listed = ", ".join(map(str, limits["choices"]))
        suggestion = nearest(value, limits["choices"]) if isinstance(value, str) else ""
        raise ValueError(f"must be one of {listed}" + (f". {suggestion}" if suggestion.startswith("Did") else ""))
    for number in value if isinstance(value, list) else [value]:
        _check_range(number, limits)
    return value


def _check_range(value: Any, limits: Mapping[str, Any]) -> None:
    if limits["at_least"] is not None and value < limits["at_least"]:
        raise ValueError(f"must be at least {limits['at_least']}")
    if limits["at_most"] is not None and value > limits["at_most"]:
        raise ValueError(f"must be at most {limits['at_most']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ValueError(f"must be greater than {limits['above']}")


def _read_value(given: Any, hint: Any) -> Any:
    """`given` as a value of type `hint`. Raises ValueError saying what was expected."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if given is None and type(None) in options:
        return None
    reasons = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _read_plain(given, option)
        except NeuronConfigError:
            raise
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(" or ".join(reasons))


def _read_plain(given: Any, hint: Any) -> Any:
    if hint is Any:
        return given
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(origin):
        return _read_section(given, origin)
    if origin is list:
        return _read_list(given, hint)
    if origin is dict:
        if not isinstance(given, Mapping):
            raise ValueError(f"expected a mapping, got {_kind(given)}")
        return dict(given)
    if origin is float:
        return _read_float(given)
    if not isinstance(given, origin) or (isinstance(given, bool) and origin is not bool):
        raise ValueError(f"expected {_type_text(hint)}, got {_kind(given)}")
    return given


def _read_section(given: Any, section: Any) -> Any:
    if isinstance(given, section):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"expected a mapping, got {_kind(given)}")
    return section.from_dict(given)


def _read_list(given: Any, hint: Any) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"expected {_type_text(hint)}, got {_kind(given)}")
    (item_hint,) = typing.get_args(hint)
    return [_read_value(item, item_hint) for item in given]


def _read_float(given: Any) -> float:
    if given == "inf":
        return math.inf
    if isinstance(given, bool) or not isinstance(given, (int, float)) or math.isnan(given):
        raise ValueError(f"expected a number, got {_kind(given)}")
    return float(given)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {_NAMES.get(type(value), type(value).__name__)}"


_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "boolean", list: "list", dict: "mapping"}


def _type_text(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join("none" if arg is type(None) else _type_text(arg) for arg in typing.get_args(hint))
    origin = typing.get_origin(hint) or hint
    if origin is list:
        return f"list of {_type_text(typing.get_args(hint)[0])}"
    if hint is Any:
        return "any"
    return _NAMES.get(origin, str(getattr(origin, "__name__", origin)))


def plain(value: Any) -> Any:
    """`value` as JSON types: sections as mappings, infinity as "inf", anything else that JSON lacks by its text."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _describe(cls: type[Section], item: dataclasses.Field[Any]) -> KeyInfo:
    owner = next(base for base in reversed(cls.__mro__) if item.name in inspect.get_annotations(base))
    default = _default(item)
    choices = " | ".join(map(str, item.metadata["choices"]))
    return KeyInfo(
        name=item.name,
        type=choices or _type_text(_hints(cls)[item.name]),
        default=item.metadata["rule_text"] if default is DERIVED else str(plain(default)),
        help=item.metadata["help"],
        group=(owner.__doc__ or "").strip().splitlines()[0].rstrip("."),
        accelerator_only=item.metadata["accelerator_only"],
    )
