"""The items of a `/v1/responses` input, as the messages of a chat.

A turn of the assistant may be several items: reasoning, a message, calls. They become one message, which is how chat
templates know it. Items of what ran on another server, and reasoning that cannot be read, are left out. Each fault is a
VLLMValidationError that names the item.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from vllm.entrypoints.chat_utils import joined_text, part_text, text_field
from vllm.entrypoints.fields import Fields, Unusable, check_fields, placed, refusal, usable
from vllm.entrypoints.model_json import decoded
from vllm.entrypoints.openai.blocks import call_message
from vllm.entrypoints.openai.protocol.tools import namespaced

Message = dict[str, Any]
_ROUTE = "/v1/responses"
_ROLES = ("user", "assistant", "system", "developer")
_LABELS = ("type", "id", "status", "internal_chat_message_metadata_passthrough")
_KINDS: dict[str, Fields] = {
    "message": Fields((*_LABELS, "role", "content", "phase")),
    "function_call": Fields((*_LABELS, "call_id", "name", "namespace", "arguments")),
    "function_call_output": Fields((*_LABELS, "call_id", "output")),
    "custom_tool_call": Fields((*_LABELS, "call_id", "name", "namespace", "input")),
    "custom_tool_call_output": Fields((*_LABELS, "call_id", "name", "output")),
    "reasoning": Fields((*_LABELS, "content", "summary", "encrypted_content")),
}
_RAN_ELSEWHERE = ("_call", "_call_output", "_approval_request", "_approval_response")
_ELSEWHERE = ("compaction", "compaction_summary", "mcp_list_tools", "tool_search_output")


def chat_messages(given: str | list[dict[str, Any]]) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    usable(placed(given, "input"), lambda item, place: _add(messages, item, place), _ROUTE)
    return messages


def _add(messages: list[Message], item: dict[str, Any], place: str) -> None:
    kind = item.get("type", "message")
    fields = _KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise _unknown(str(kind)[:64], place)
    check_fields(item, fields, _ROUTE, place)
    if kind == "message":
        _add_message(messages, item, place)
    elif kind == "reasoning":
        messages.append({"role": "assistant", "content": None, "reasoning_content": _reasoning(item, place)})
    elif kind.endswith("_output"):
        output = _text(item.get("output"), f"{place}.output")
        messages.append({"role": "tool", "tool_call_id": text_field(item, "call_id", place), "content": output})
    else:
        _add_call(messages, item, place)


def _unknown(kind: str, place: str) -> Exception:
    if kind in _ELSEWHERE or kind.endswith(_RAN_ELSEWHERE):
        return Unusable(f"a {kind} is not known to a chat template")
    return refusal(f"{place}.type", f"{kind!r} is not supported; known: {', '.join(_KINDS)}.")


def _text(content: Any, place: str) -> str:
    return joined_text(content, place, "parts", partial(part_text, route=_ROUTE))


def _add_message(messages: list[Message], item: dict[str, Any], place: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise refusal(f"{place}.role", f"must be one of {', '.join(_ROLES)}.")
    content = _text(item.get("content"), f"{place}.content")
    if role == "assistant" and _is_reasoning_alone(messages):
        messages[-1]["content"] = content
    else:
        messages.append({"role": role, "content": content})


def _add_call(messages: list[Message], item: dict[str, Any], place: str) -> None:
    """A custom tool's input stands as an argument of that name, as if it were a function."""
    call_id, name = (text_field(item, field, place) for field in ("call_id", "name"))
    if item.get("namespace") is not None:
        name = namespaced(text_field(item, "namespace", place), name)
    if item["type"] == "custom_tool_call":
        arguments = json.dumps({"input": text_field(item, "input", place)}, ensure_ascii=False)
    else:
        arguments = text_field(item, "arguments", place)
        _check_json(arguments, f"{place}.arguments")
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call_message(call_id, name, arguments))


def _check_json(arguments: str, place: str) -> None:
    try:
        decoded(arguments or "{}")
    except ValueError:
        raise refusal(place, "is not valid JSON.") from None


def _is_reasoning_alone(messages: list[Message]) -> bool:
    last = messages[-1] if messages else {}
    return "reasoning_content" in last and last["content"] is None and "tool_calls" not in last


def _reasoning(item: dict[str, Any], place: str) -> str:
    """Its text, or else its summary's."""
    for name in ("content", "summary"):
        if item.get(name):
            return _text(item[name], f"{place}.{name}")
    raise Unusable("its text is encrypted or empty")
