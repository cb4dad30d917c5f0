"""The items of a `/v1/responses` input, as the messages of a chat.

A turn of the assistant may be several items: reasoning, a message, calls. They become one message, which is how chat
templates know it. Each fault is a VLLMValidationError that names the item.
"""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.chat_utils import joined_text, text_field
from vllm.entrypoints.openai.blocks import call_message
from vllm.exceptions import VLLMValidationError

Message = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_KINDS = ("message", "function_call", "function_call_output", "reasoning")


def chat_messages(given: str | list[dict[str, Any]]) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    for i, item in enumerate(given):
        _add(messages, item, f"input[{i}]")
    return messages


def _add(messages: list[Message], item: dict[str, Any], place: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(messages, item, place)
    elif kind == "function_call":
        _add_call(messages, item, place)
    elif kind == "function_call_output":
        output = joined_text(item.get("output"), f"{place}.output", "parts")
        messages.append({"role": "tool", "tool_call_id": text_field(item, "call_id", place), "content": output})
    elif kind == "reasoning":
        messages.append({"role": "assistant", "content": None, "reasoning_content": _reasoning(item, place)})
    else:
        known = ", ".join(_KINDS)
        raise _fault(f"`{place}.type` {str(kind)[:32]!r} is not supported; known: {known}.", f"{place}.type")


def _add_message(messages: list[Message], item: dict[str, Any], place: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise _fault(f"`{place}.role` must be one of {', '.join(_ROLES)}.", f"{place}.role")
    content = joined_text(item.get("content"), f"{place}.content", "parts")
    if role == "assistant" and _is_reasoning_alone(messages):
        messages[-1]["content"] = content
    else:
        messages.append({"role": "system" if role == "developer" else role, "content": content})


def _add_call(messages: list[Message], item: dict[str, Any], place: str) -> None:
    call = call_message(*(text_field(item, name, place) for name in ("call_id", "name", "arguments")))
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _is_reasoning_alone(messages: list[Message]) -> bool:
    last = messages[-1] if messages else {}
    return "reasoning_content" in last and last["content"] is None and "tool_calls" not in last


def _reasoning(item: dict[str, Any], place: str) -> str:
    """Its text, or else its summary's."""
    for name in ("content", "summary"):
        if item.get(name):
            return joined_text(item[name], f"{place}.{name}", "parts")
    raise _fault(f"`{place}` has no text: reasoning is taken as `content`, not encrypted.", f"{place}.content")


def _fault(message: str, place: str) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=place)
