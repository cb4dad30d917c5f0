"""An argument parser that takes what users of vLLM write.

- `--max_model_len` for `--max-model-len`;
- `--config FILE.yaml`: options by name; the command line goes before the file;
- `--additional-config.override_neuron_config.tp_degree 2`: one entry of an option that takes a mapping;
- `--help=WORD`: the options of a group, or those that hold a word; `listgroup`, `all` and `page` as in vLLM.
"""

from __future__ import annotations

import argparse
import difflib
import json
import pydoc
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml


class FlexibleArgumentParser(argparse.ArgumentParser):
    """See the module. Options must be written in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        for word in words[: words.index("--") if "--" in words else None]:
            if word.startswith("--help="):
                self._answer_help(word.partition("=")[2])
        try:
            words = join_dotted(dash_names(expand_config(words, self._option_string_actions)))
        except (ValueError, OSError) as error:
            self.error(str(error))
        return super().parse_known_args(words, namespace)

    def _answer_help(self, asked: str) -> NoReturn:
        """Print what is asked of the options, and end the program."""
        if asked == "page":
            pydoc.pager(self.format_help())
        elif asked in ("", "all"):
            self.print_help()
        elif asked == "listgroup":
            groups = [group for group in self._action_groups if group.title and group._group_actions]
            print(
                "\n".join(
                    f"--help={shlex.quote(str(group.title))} ({len(group._group_actions)} options)" for group in groups
                )
            )
        else:
            print(self._help_about(asked), end="")
        self.exit(0)

    def _help_about(self, asked: str) -> str:
        """Of a group by its title, an option by its name, or the options that hold a word."""
        formatter = self._get_formatter()
        found = False
        for group in self._action_groups:
            if actions := _asked_actions(group, asked, self._option_string_actions):
                found = True
                formatter.start_section(group.title)
                formatter.add_arguments(actions)
                formatter.end_section()
        if not found:
            titles = [group.title or "" for group in self._action_groups]
            nearest = difflib.get_close_matches(asked, [*titles, *self._option_string_actions], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "--help=listgroup lists groups"
            self.error(f"no option and no group of options is like {asked!r}; {hint}")
        return formatter.format_help()


def _asked_actions(
    group: argparse._ArgumentGroup, asked: str, by_flag: Mapping[str, argparse.Action]
) -> list[argparse.Action]:
    word = asked.lower().replace("_", "-").lstrip("-")
    if (group.title or "").lower() == asked.lower():
        return group._group_actions
    if exact := by_flag.get(f"--{word}"):
        return [action for action in group._group_actions if action is exact]
    named = [action for flag, action in by_flag.items() if word in flag]
    return [
        action
        for action in group._group_actions
        if action in named or (not named and asked.lower() in (action.help or "").lower())
    ]


def dash_names(words: list[str]) -> list[str]:
    """Dashes for the underscores in the names of long options; what follows `--`, and values, stay as they are."""
    dashed: list[str] = []
    for i, word in enumerate(words):
        if word == "--":
            return dashed + words[i:]
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            option, dot, entry = name.partition(".")
            word = option.replace("_", "-") + dot + entry + equals + value
        dashed.append(word)
    return dashed


def expand_config(words: list[str], actions: Mapping[str, argparse.Action]) -> list[str]:
    """Put the options of `--config FILE` before the others. Raises ValueError for a file that is not such a mapping.

    actions: the parser's, by flag: a list of the file becomes several values, several flags, or JSON, as each takes it.
    """
    for i, word in enumerate(words):
        if word == "--config" and i + 1 < len(words):
            return _words_of_file(Path(words[i + 1]), actions) + words[:i] + words[i + 2 :]
        if word.startswith("--config="):
            return _words_of_file(Path(word.partition("=")[2]), actions) + words[:i] + words[i + 1 :]
    return words


def _words_of_file(path: Path, actions: Mapping[str, argparse.Action]) -> list[str]:
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--config reads YAML: {path} is neither .yaml nor .yml")
    try:
        entries = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold lines of the form `option: value`")
    words: list[str] = []
    for name, value in entries.items():
        option, dot, entry = str(name).partition(".")
        flag = f"--{option.replace('_', '-')}"
        if flag not in actions:
            raise ValueError(_unknown_entry(path, str(name), value, actions))
        words += [f"{flag}.{entry}={json.dumps(value)}"] if dot else _words_of(flag, value, actions[flag])
    return words


def _unknown_entry(path: Path, name: str, value: Any, actions: Mapping[str, argparse.Action]) -> str:
    if isinstance(value, dict) and any(f"--{str(key).replace('_', '-')}" in actions for key in value):
        return f"{path}: {name!r} is not an option, and the file has no sections: options stand at its top level"
    nearest = difflib.get_close_matches(f"--{name.replace('_', '-')}", actions, n=1)
    return f"{path}: unknown option {name!r}" + (f"; did you mean {nearest[0].lstrip('-')!r}?" if nearest else "")


def _words_of(flag: str, value: Any, action: argparse.Action | None) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if value is None:
        return []
    if isinstance(value, list) and isinstance(action, argparse._AppendAction):
        return [f"{flag}={each}" for each in value]
    if isinstance(value, list) and action is not None and action.nargs in ("+", "*"):
        return [flag, *map(str, value)]
    return [f"{flag}={json.dumps(value) if isinstance(value, (dict, list)) else value}"]


def join_dotted(words: list[str]) -> list[str]:
    """Gather `--option.key.key value` into one `--option={json}` each."""
    kept: list[str] = []
    mappings: dict[str, dict[str, Any]] = {}
    i = 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        i += 1
        if name == "--":
            kept += words[i - 1 :]
            break
        if not name.startswith("--") or "." not in name:
            kept.append(words[i - 1])
            continue
        if not equals:
            if i >= len(words):
                raise ValueError(f"{name} needs a value")
            value = words[i]
            i += 1
        option, *keys = name.split(".")
        _set_entry(mappings.setdefault(option, {}), keys, value, name)
    at = kept.index("--") if "--" in kept else len(kept)
    return kept[:at] + [f"{option}={json.dumps(mapping)}" for option, mapping in mappings.items()] + kept[at:]


def _set_entry(mapping: dict[str, Any], keys: list[str], value: str, name: str) -> None:
    *parents, last = keys
    for key in parents:
        mapping = mapping.setdefault(key, {})
        if not isinstance(mapping, dict):
            raise ValueError(f"{name} goes into {key}, which was given a plain value")
    try:
        mapping[last] = json.loads(value)
    except ValueError:
        mapping[last] = value
