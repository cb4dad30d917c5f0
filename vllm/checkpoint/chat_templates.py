"""Where checkpoints keep their chat templates.

Most have one. Some have several by name: `default`, `tool_use` for conversations with tools, and others, as a list in
tokenizer_config.json, as files in additional_chat_templates/, or as entries of a GGUF file's metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import read_text

ChatTemplate = str | dict[str, str]
"""The template, or several by name."""

DEFAULT, TOOL_USE = "default", "tool_use"
_GGUF_KEY = "tokenizer.chat_template"


def directory_templates(path: Path, tokenizer_config: dict[str, Any], template_json: Any) -> ChatTemplate | None:
    """Of a directory: its template files, or else its JSON. template_json: what chat_template.json holds, if anything.

    Raises CheckpointError for an entry that is not a text.
    """
    named = {file.stem: read_text(file) for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        named[DEFAULT] = read_text(path / "chat_template.jinja")
    if named:
        return _simplest(named)
    given = tokenizer_config.get("chat_template") or template_json
    if isinstance(given, list):
        given = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
    if isinstance(given, dict) and all(isinstance(part, str) for pair in given.items() for part in pair):
        return _simplest(given)
    if given and not isinstance(given, str):
        raise CheckpointError(f"{path}: its chat_template is neither a text nor a list of named texts")
    return given or None


def gguf_templates(metadata: dict[str, Any]) -> ChatTemplate | None:
    named = {
        key.removeprefix(_GGUF_KEY).removeprefix(".") or DEFAULT: text
        for key, text in metadata.items()
        if (key == _GGUF_KEY or key.startswith(f"{_GGUF_KEY}.")) and isinstance(text, str) and text
    }
    return _simplest(named)


def _simplest(named: dict[str, str]) -> ChatTemplate | None:
    return named.get(DEFAULT) if named.keys() <= {DEFAULT} else named
