"""Chat templates: Jinja programs that come with a tokenizer and turn a conversation into a prompt.

They run in a sandbox that can change nothing and reach no Python internals, with what templates in the wild rely on:
trimmed blocks, `break` and `continue`, `raise_exception`, `strftime_now`, `tojson` that escapes nothing for HTML, and
`generation` blocks. Faults of the template or the conversation are `jinja2.TemplateError`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm.exceptions import VLLMValidationError

Message = Mapping[str, Any]

# The trailing space tells whether the template trims what a message ends with.
_END_OF_MESSAGE = "<|end-of-the-message-to-be-continued|> "


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says; here it only stands for its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=16)
def compile_template(source: str) -> jinja2.Template:
    """Raises jinja2.TemplateSyntaxError."""
    return _environment().from_string(source)


def render_chat(
    source: str,
    conversation: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of one conversation.

    continue_final_message: the prompt ends where the last message's text does, so that it is gone on with.
    variables: further names that the template sees.
    """
    if continue_final_message and add_generation_prompt:
        raise VLLMValidationError(
            "continue_final_message and add_generation_prompt exclude one another: the first goes on with the last "
            "message, the second begins a new one.",
            parameter="continue_final_message",
        )
    if any(callable(tool) for tool in tools or ()):
        raise VLLMValidationError("tools must be JSON schemas as dicts; functions are not read.", parameter="tools")
    messages: Sequence[Message] = conversation
    if continue_final_message:
        messages = [*conversation[:-1], _with_mark(conversation[-1])]
    text = compile_template(source).render(
        **{
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
        }
    )
    return _cut_at_mark(text) if continue_final_message else text


def _with_mark(message: Message) -> Message:
    """The message, its text ending in a mark. Raises VLLMValidationError if it has no text."""
    marked = copy.deepcopy(dict(message))
    content = marked.get("content")
    if isinstance(content, str):
        marked["content"] = content + _END_OF_MESSAGE
        return marked
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += _END_OF_MESSAGE
            return marked
    raise VLLMValidationError(
        "continue_final_message needs a last message with text to go on with.", parameter="continue_final_message"
    )


def _cut_at_mark(text: str) -> str:
    position = text.rfind(_END_OF_MESSAGE)
    if position >= 0:
        return text[:position]
    position = text.rfind(_END_OF_MESSAGE.rstrip())
    if position < 0:
        raise VLLMValidationError(
            "continue_final_message cannot be used: the chat template leaves out the last message's text.",
            parameter="continue_final_message",
        )
    return text[:position].rstrip()
