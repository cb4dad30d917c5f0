"""Reading what users write: mappings on a command line, counts with suffixes, and the spellings of an override.

`parse_json_option` takes JSON, and failing that a YAML flow mapping, since that is what people paste: Python literals,
trailing commas, bare keys. Nothing is evaluated; tags, anchors and aliases are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from vllm.config import NeuronOptions
from vllm.settings.faults import NOTHING, Faults, nearest

OVERRIDE_KEY = "override_neuron_config"
TEXT_KEY = "text_neuron_config"
"""What NxD Inference calls the decoder's part of an image-to-text model's config: here a spelling of the whole."""
_EXAMPLE = '{"override_neuron_config": {"enable_bucketing": false}}'


class _FlowLoader(yaml.SafeLoader):
    """Safe YAML whose scalars are JSON's and Python's: `on` and `012` are text, `None` is null."""

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not accepted", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"null|None|~|", "nN~"),
    ("tag:yaml.org,2002:bool", r"true|True|false|False", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _FlowLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_json_option(text: str) -> dict[str, Any]:
    """A mapping written on a command line. Raises ValueError that shows the place and a corrected example."""
    try:
        value = json.loads(text, object_pairs_hook=_mapping_without_twins)
    except json.JSONDecodeError:
        value = _parse_flow(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {text.strip()[:60]!r}. For example: {_EXAMPLE}")
    return value


def _mapping_without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twin!r} is given twice. Keep one")
    return mapping


def _parse_flow(text: str) -> Any:
    if not text.strip().startswith(("{", "[")):
        raise _unreadable(text, len(text) - len(text.lstrip()), "expected '{'")
    try:
        return yaml.load(text, _FlowLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _unreadable(text, mark.index if mark else 0, error.problem or "not a mapping") from None
    except yaml.YAMLError as error:
        raise _unreadable(text, getattr(error, "position", 0) or 0, "a character that cannot be here") from None
    except RecursionError:
        raise ValueError("the mapping is nested too deeply") from None


def _unreadable(text: str, index: int, problem: str) -> ValueError:
    """The error for `text`, with the line at fault, a caret under `index`, and what would be read."""
    index = min(index, len(text))
    start = text.rfind("\n", 0, index) + 1
    end = text.find("\n", index)
    line = text[start : end if end >= 0 else len(text)]
    first = max(0, index - start - 60)
    shown = line[first : first + 120]
    caret = " " * (index - start - first) + "^"
    return ValueError(
        f"neither JSON nor a YAML mapping: {problem} here:\n    {shown}\n    {caret}\nWhat works: {_corrected(text)}"
    )


def _corrected(text: str) -> str:
    """The text with brackets closed, as JSON, if that makes it readable; else an example."""
    mended = text.strip()
    if not mended.startswith("{"):
        mended = "{" + mended
    try:
        value = yaml.load(_closed(mended), _FlowLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _EXAMPLE
    return json.dumps(value) if isinstance(value, dict) and None not in value.values() else _EXAMPLE


def _closed(text: str) -> str:
    """`text` with open quotes and brackets closed, and closing brackets that close nothing left out."""
    kept, open_brackets, quote = [], [], ""
    pairs = {"{": "}", "[": "]"}
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in pairs:
            open_brackets.append(pairs[character])
        elif character in "}]":
            if not open_brackets:
                continue
            character = open_brackets.pop()
        kept.append(character)
    return "".join(kept) + quote + "".join(reversed(open_brackets))


_SUFFIXES: dict[str, int] = {
    **{suffix: 1000**power for power, suffix in enumerate("kmgt", start=1)},
    **{suffix: 1024**power for power, suffix in enumerate("KMGT", start=1)},
}
_HUMAN_INT = re.compile(r"([+-]?)(\d+)(\.\d+)?([kmgtKMGT]?)")


def human_int(text: str) -> int:
    """A count with an optional suffix: 1k is 1000, 1K is 1024, 25.6k is 25600. Fractions go with k, m, g, t only."""
    match = _HUMAN_INT.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a count. Use for example 4096, 4k (4000) or 4K (4096)")
    sign, whole, fraction, suffix = match.groups()
    factor = _SUFFIXES.get(suffix, 1)
    if not fraction:
        return int(sign + whole) * factor
    digits = fraction[1:]
    value, rest = divmod(int(whole + digits) * factor, 10 ** len(digits))
    if suffix not in "kmgt" or not suffix or rest:
        raise ValueError(f"{text!r} is not a whole number. Use for example 25600 or 25.6k")
    return int(sign + str(value))


def merged_override(options: NeuronOptions, faults: Faults) -> dict[str, Any]:
    """The override mapping from all its spellings; the user's own mappings are left as they are.

    Equal entries may be repeated; entries that contradict each other are faults.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, entries in _override_sources(options, faults):
        for name, value in entries.items():
            if name in merged and merged[name] != value:
                why = f"{source} says {value!r}, {sources[name]} says {merged[name]!r}"
                faults.unreadable(str(name), NOTHING, why, "Give it once")
            merged[name] = value
            sources.setdefault(name, source)
    return merged


def _override_sources(options: NeuronOptions, faults: Faults) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Any]] = [(OVERRIDE_KEY, options.override_neuron_config)]
    for name, value in options.additional_config.items():
        if str(name).replace("-", "_") == OVERRIDE_KEY:
            found.append((f"additional_config[{name!r}]", value))
        else:
            hint = nearest(str(name), [OVERRIDE_KEY])
            faults.add(f"additional_config[{name!r}]", NOTHING, "unknown key", hint)
    usable: list[tuple[str, Mapping[str, Any]]] = []
    for source, value in found:
        if isinstance(value, Mapping):
            usable.append((source, {name: entry for name, entry in value.items() if name != TEXT_KEY}))
            if TEXT_KEY in value:
                found.append((f"{source}[{TEXT_KEY!r}]", value[TEXT_KEY]))
        elif value is not None:
            faults.add(
                source, value, "expected a mapping of Neuron config keys", 'For example {"enable_bucketing": false}'
            )
    return usable
