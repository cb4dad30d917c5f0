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
from vllm.settings.section import Section

OVERRIDE_KEY = "override_neuron_config"
_NESTED = (OVERRIDE_KEY, "override-neuron-config", "text_neuron_config", "text_config")
"""Keys of an override that hold an override: itself, and what NxD Inference and guides call the decoder's part of an
image-to-text model's config."""
_SPELLINGS = {
    "vision_config": "vision_neuron_config",
    "max_prompt_length": "max_context_length",
    "logical_neuron_cores": "logical_nc_config",
}
"""Names that guides give keys of the Neuron config."""
_UNREAD = {
    "kv_cache_tiling": "NxD Inference works it out",
    "scratch_pad_size": "no version of NxD Inference reads it; scratchpad_page_size is what it knows",
    "mode_mask_padded_tokens": "no version of NxD Inference reads it; moe_mask_padded_tokens is what it knows",
    "trace_tokengen_model": "NxD Inference no longer has it",
}
"""Keys that guides print and that have no effect anywhere."""
_DECODERS = frozenset(
    {
        "batch_size",
        "seq_len",
        "torch_dtype",
        "world_size",
        "cp_degree",
        "dp_degree",
        "logical_nc_config",
        "logical_neuron_cores",
        "save_sharded_checkpoint",
        "enable_bucketing",
    }
)
"""Keys that guides give the vision encoder, which has them from the decoder or by its degree."""
EXAMPLE = '{"enable_bucketing": false}'


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


def parse_json_option(text: str, example: str = EXAMPLE) -> dict[str, Any]:
    """A mapping written on a command line, once or, as templates do, in a text of its own.

    example: what the option takes. Raises ValueError that shows the place and a corrected example.
    """
    value = _parse_value(text, example)
    if isinstance(value, str):
        value = _parse_value(value, example)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {text.strip()[:60]!r}. For example: {example}")
    return value


def _parse_value(text: str, example: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_mapping_without_twins)
    except json.JSONDecodeError:
        return _parse_flow(text, example)


def _mapping_without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twin!r} is given twice. Keep one")
    return mapping


def _parse_flow(text: str, example: str) -> Any:
    if not text.strip().startswith(("{", "[")):
        raise _unreadable(text, len(text) - len(text.lstrip()), "expected '{'", example)
    try:
        return yaml.load(text, _FlowLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _unreadable(text, mark.index if mark else 0, error.problem or "not a mapping", example) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0) or 0
        raise _unreadable(text, position, "a character that cannot be here", example) from None
    except RecursionError:
        raise ValueError("the mapping is nested too deeply") from None


def _unreadable(text: str, index: int, problem: str, example: str) -> ValueError:
    """The error for `text`, with the line at fault, a caret under `index`, and what would be read."""
    index = min(index, len(text))
    start = text.rfind("\n", 0, index) + 1
    end = text.find("\n", index)
    line = text[start : end if end >= 0 else len(text)]
    first = max(0, index - start - 60)
    shown = line[first : first + 120]
    caret = " " * (index - start - first) + "^"
    works = _corrected(text, example)
    return ValueError(
        f"neither JSON nor a YAML mapping: {problem} here:\n    {shown}\n    {caret}\nWhat works: {works}"
    )


def _corrected(text: str, example: str) -> str:
    """The text with brackets closed, as JSON, if that makes it readable; else an example."""
    mended = text.strip()
    if not mended.startswith("{"):
        mended = "{" + mended
    try:
        value = yaml.load(_closed(mended), _FlowLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return example
    return json.dumps(value) if isinstance(value, dict) and None not in value.values() else example


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
    """The override mapping from all its spellings, of plain values; the user's own mappings are left as they are.

    Equal entries may be repeated; entries that contradict each other are faults. Objects with attributes, such as the
    library's own, stand for their fields. Keys without effect are noted and left out.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, entries in _override_sources(options, faults):
        for name, value in entries.items():
            name = str(name).replace("-", "_")
            name = _SPELLINGS.get(name, name)
            value = _vision_entries(value, faults) if name == "vision_neuron_config" else value
            if name in _UNREAD:
                faults.note(f"{name} of the Neuron config has no effect: {_UNREAD[name]}")
                continue
            if name in merged and merged[name] != value:
                why = f"{source} says {value!r}, {sources[name]} says {merged[name]!r}"
                faults.unreadable(str(name), NOTHING, why, "Give it once")
            merged[name] = value
            sources.setdefault(name, source)
    if "lora_ckpt_json" in merged:
        section = merged.get("lora_config")
        merged["lora_config"] = {
            **(section if isinstance(section, Mapping) else {}),
            "lora_ckpt_json": merged.pop("lora_ckpt_json"),
        }
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
        try:
            entries = {name: entry if name in _NESTED else _plain(entry) for name, entry in _entries(value).items()}
        except ValueError as error:
            faults.unreadable(source, value, str(error))
            continue
        usable.append((source, {name: entry for name, entry in entries.items() if name not in _NESTED}))
        found += [(f"{source}[{name!r}]", entries[name]) for name in _NESTED if name in entries]
    return usable


def _entries(value: Any) -> Mapping[str, Any]:
    """Entries of an override as it was given: a mapping, a text of one, or nothing. Raises ValueError."""
    if isinstance(value, str):
        return parse_json_option(value)
    value = {} if value is None else _plain(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of Neuron config keys. For example {EXAMPLE}")
    return value


def _plain(value: Any) -> Any:
    """A text of a mapping, or an object with attributes, as that mapping; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return parse_json_option(value)
    fields = None if isinstance(value, type | Section) else getattr(value, "__dict__", None)
    if not fields or isinstance(value, Mapping | str | list | tuple):
        return value
    return {name: _plain(entry) for name, entry in fields.items() if not name.startswith("_")}


def _vision_entries(value: Any, faults: Faults) -> Any:
    if not isinstance(value, Mapping):
        return value
    shared = sorted(name for name in value if name in _DECODERS)
    if shared:
        faults.note(f"{', '.join(shared)} of vision_neuron_config: the vision encoder has what the decoder has")
    return {name: entry for name, entry in value.items() if name not in shared}
