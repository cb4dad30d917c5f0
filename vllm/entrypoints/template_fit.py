"""What a chat template can show, found by trying it, and conversations made to fit.

Templates differ in the roles that they take and where. Some raise for a system message that is not the first, or for
any; some leave it out; some want the user and the assistant to take turns. Clients send such conversations all the
same. `fitted` changes of a conversation only what its template would refuse or lose: system messages join the first, or
the first message of the user; messages of one role in a row become one; `developer` is `system` by another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jinja2

from vllm.engine.text.chat_template import render_chat
from vllm.entrypoints.chat_utils import ContentFormat
from vllm.exceptions import VLLMValidationError

Message = dict[str, Any]

NOT_SHOWN = (
    "are not shown to the model: the chat template has no place for them. Give one that has (--chat-template FILE), or "
    "describe them in a message"
)

_MARKS = ("alphamark", "bravomark", "charliemark", "deltamark", "echomark", "foxtrotmark")
_TOOL_MARK = "golfmark"
_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_MARK,
        "description": "hotelmark",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "indiamark"}}},
    },
}
_FAULTS = (
    jinja2.TemplateError,
    VLLMValidationError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""Of a template that does not take a conversation."""


class TemplateTraits(NamedTuple):
    """system: where system messages may stand. in_a_row: whether messages of the user may follow one another.
    developer: whether the template knows that role. tools: whether it shows tools.
    """

    system: Literal["anywhere", "first", "nowhere"]
    in_a_row: bool
    developer: bool
    tools: bool


def traits_of(source: str, content_format: ContentFormat, variables: Mapping[str, Any]) -> TemplateTraits:
    """variables: what the template is given beside a conversation. Runs the template: where it is not trusted, bound
    its time."""

    def shows(roles: str, tools: list[Any] | None = None) -> str:
        """The prompt of a conversation, each message of which is a mark; s, u and a stand for the roles."""
        names = {"s": "system", "u": "user", "a": "assistant"}
        messages = [
            {"role": names[role], "content": _content(mark, content_format)}
            for role, mark in zip(roles, _MARKS, strict=False)
        ]
        try:
            return render_chat(source, messages, tools=tools, add_generation_prompt=True, variables=variables)
        except _FAULTS:
            return ""

    def keeps(roles: str) -> bool:
        """Whether all messages are shown, in their order."""
        text = shows(roles)
        places = [text.find(mark) for mark in _MARKS[: len(roles)]]
        return -1 not in places and places == sorted(places)

    tools, developer = _TOOL_MARK in shows("u", [_TOOL]), "developer" in source
    if not keeps("u") or keeps("ssuasu"):
        return TemplateTraits("anywhere", not keeps("u") or keeps("uu"), developer, tools)
    return TemplateTraits("first" if keeps("su") else "nowhere", keeps("uu"), developer, tools)


def fitted(conversation: list[Message], traits: TemplateTraits) -> list[Message]:
    """The conversation as the template can show it; the given one is left as it is."""
    if not traits.developer:
        conversation = [
            {**message, "role": "system"} if message["role"] == "developer" else message for message in conversation
        ]
    if traits.system != "anywhere":
        conversation = _with_system_first(conversation, traits.system == "first")
    return conversation if traits.in_a_row else _joined_turns(conversation)


def _with_system_first(conversation: list[Message], has_role: bool) -> list[Message]:
    """has_role: whether there may be a system message; else it begins the first message of the user."""
    prompts = [message for message in conversation if message["role"] == "system"]
    if not prompts or (has_role and len(prompts) == 1 and conversation[0] is prompts[0]):
        return conversation
    others = [message for message in conversation if message["role"] != "system"]
    prompt = _all_joined(prompts)
    if has_role:
        return [prompt, *others]
    first = next((i for i, message in enumerate(others) if message["role"] == "user"), None)
    if first is None:
        return [{**prompt, "role": "user"}, *others]
    joined = {**others[first], "content": _join(prompt["content"], others[first]["content"])}
    return [*others[:first], joined, *others[first + 1 :]]


def _joined_turns(conversation: list[Message]) -> list[Message]:
    """Messages of the user in a row are one, and so are the assistant's, unless they hold calls."""
    joined: list[Message] = []
    for message in conversation:
        last = joined[-1] if joined else {}
        may_join = message["role"] in ("user", "assistant") and "tool_calls" not in last
        if may_join and last.get("role") == message["role"]:
            joined[-1] = _all_joined([last, message])
        else:
            joined.append(message)
    return joined


def _all_joined(messages: list[Message]) -> Message:
    joined = messages[0]
    for message in messages[1:]:
        joined = {**joined, **message, "content": _join(joined["content"], message["content"])}
    return joined


def _join(left: Any, right: Any) -> Any:
    """Two contents, as text or as parts."""
    if isinstance(left, str) and isinstance(right, str):
        return f"{left}\n\n{right}" if left and right else left or right
    return [*_parts(left), *_parts(right)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _content(text: str, content_format: ContentFormat) -> Any:
    return text if content_format == "string" else [{"type": "text", "text": text}]
