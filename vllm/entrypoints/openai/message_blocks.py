"""The blocks of a `/v1/messages` conversation as messages of a chat, and those of an output as that API shows them.

A turn of the user that holds results of tools becomes a message of role tool for each, and one of the user for the text
that is left. Each fault is a VLLMValidationError that names the block.
"""

from __future__ import annotations

import json
from typing import Any

from vllm.entrypoints.chat_utils import joined_text, part_text, text_field
from vllm.entrypoints.model_json import decoded
from vllm.entrypoints.openai.blocks import Block, call_message
from vllm.exceptions import VLLMValidationError

Message = dict[str, Any]


def chat_messages(messages: list[dict[str, Any]], system: str | list[dict[str, Any]] | None) -> list[Message]:
    converted: list[Message] = []
    if system is not None:
        converted.append({"role": "system", "content": joined_text(system, "system", "text blocks", _text_block)})
    for i, message in enumerate(messages):
        role, content, place = message.get("role"), message.get("content"), f"messages[{i}].content"
        if role not in ("user", "assistant"):
            raise _fault(f"`messages[{i}].role` must be user or assistant.", f"messages[{i}].role")
        if isinstance(content, str):
            converted.append({"role": role, "content": content})
        elif not isinstance(content, list):
            raise _fault(f"`{place}` must be a text or a list of blocks.", place)
        else:
            converted += _of_assistant(content, place) if role == "assistant" else _of_user(content, place)
    return converted


def _of_user(blocks: list[Any], place: str) -> list[Message]:
    results: list[Message] = []
    texts: list[str] = []
    for i, block in enumerate(blocks):
        at = f"{place}[{i}]"
        if isinstance(block, dict) and block.get("type") == "tool_result":
            results.append(_result(block, at))
        else:
            texts.append(_text_block(block, at))
    return results + ([{"role": "user", "content": "\n".join(texts)}] if texts or not results else [])


def _result(block: dict[str, Any], place: str) -> Message:
    content = block.get("content")
    text = "" if content is None else joined_text(content, f"{place}.content", "text blocks", _text_block)
    return {"role": "tool", "tool_call_id": text_field(block, "tool_use_id", place), "content": text}


def _of_assistant(blocks: list[Any], place: str) -> list[Message]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        at = f"{place}[{i}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            calls.append(_call(block, at))
        elif kind == "thinking":
            thoughts.append(text_field(block, "thinking", at))
        else:
            texts.append(_text_block(block, at))
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _call(block: dict[str, Any], place: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise _fault(f"`{place}.input` must be an object.", f"{place}.input")
    arguments = json.dumps(given, ensure_ascii=False)
    return call_message(text_field(block, "id", place), text_field(block, "name", place), arguments)


def _text_block(block: Any, place: str) -> str:
    if isinstance(block, dict) and block.get("type") == "text":
        return part_text(block, place)
    kind = block.get("type") if isinstance(block, dict) else block
    raise _fault(f"`{place}.type` {str(kind)[:32]!r} is not supported here: this model takes text.", f"{place}.type")


def _fault(message: str, place: str) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=place)


def opened_block(block: Block) -> dict[str, Any]:
    """A block before its text has come."""
    if block.kind == "call":
        return {"type": "tool_use", "id": f"toolu_{block.id}", "name": block.name, "input": {}}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def whole_block(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {**opened_block(block), "input": _arguments(block.text)}
    return {**opened_block(block), "thinking" if block.kind == "reasoning" else "text": block.text}


def _arguments(text: str) -> dict[str, Any]:
    """Those of a call that was cut off are no object."""
    try:
        value = decoded(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def delta_of(block: Block, piece: str) -> dict[str, Any]:
    if block.kind == "call":
        return {"type": "input_json_delta", "partial_json": piece}
    if block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": piece}
    return {"type": "text_delta", "text": piece}
