"""The blocks of a `/v1/messages` conversation as messages of a chat, and those of an output as that API shows them.

System messages, wherever they stand, join the system prompt. A turn of the user that holds results of tools becomes a
message of role tool for each, and one of the user for the text that is left. Blocks of what ran on another server, and
reasoning that cannot be read, are left out. Each fault is a VLLMValidationError that names the block.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vllm.entrypoints.chat_utils import joined_text, text_field
from vllm.entrypoints.fields import Fields, Unusable, check_fields, placed, refusal, usable
from vllm.entrypoints.model_json import decoded
from vllm.entrypoints.openai.blocks import Block, call_message
from vllm.entrypoints.openai.protocol.messages import MESSAGES_ROUTE

Message = dict[str, Any]
_LABELS = ("type", "cache_control")
_SEES_TEXT = "the model sees the text alone."
_NOT_CITED = {"citations": "answers cite nothing."}
_TEXT = Fields((*_LABELS, "text"), {"citations": _SEES_TEXT})
_RESULT = Fields((*_LABELS, "tool_use_id", "content"), {"is_error": _SEES_TEXT})
_CALL = Fields((*_LABELS, "id", "name", "input"), {"caller": "calls come from the model alone."})
_THINKING = Fields((*_LABELS, "thinking", "signature"))
_DOCUMENT = Fields((*_LABELS, "source", "title", "context"), _NOT_CITED)
_SEARCHED = Fields((*_LABELS, "source", "title", "content"), _NOT_CITED)
_REFERENCE = Fields((*_LABELS, "tool_name"))
_COMPACTION = Fields((*_LABELS, "content"))
_BILLING = "x-anthropic-billing-header:"
"""What Claude Code begins its system prompt with. With it no two sessions would share a prefix."""
_RAN_ELSEWHERE = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "container_upload")


def chat_messages(messages: list[dict[str, Any]], system: str | list[dict[str, Any]] | None) -> list[Message]:
    converted: list[Message] = []
    prompts = [] if system is None else [_system_prompt(system)]
    for i, message in enumerate(messages):
        check_fields(message, Fields(("role", "content")), MESSAGES_ROUTE, f"messages[{i}]")
        role, content, place = message.get("role"), message.get("content"), f"messages[{i}].content"
        if role == "system":
            prompts.append(_joined(content, place))
        elif role not in ("user", "assistant"):
            raise refusal(f"messages[{i}].role", "must be user, assistant or system.")
        elif isinstance(content, str):
            converted.append({"role": role, "content": content})
        elif not isinstance(content, list):
            raise refusal(place, "must be a text or a list of blocks.")
        else:
            converted += _of_assistant(content, place) if role == "assistant" else _of_user(content, place)
    if not converted:
        raise refusal("messages", "must hold a turn of the user or the assistant.")
    return [{"role": "system", "content": "\n\n".join(prompts)}, *converted] if prompts else converted


def _system_prompt(system: str | list[dict[str, Any]]) -> str:
    if isinstance(system, str):
        return system
    return "\n".join(text for _, text in usable(placed(system, "system"), _system_text, MESSAGES_ROUTE))


def _system_text(block: Any, place: str) -> str:
    text = _text_block(block, place)
    if text.startswith(_BILLING):
        raise Unusable("it is a label of the client's, which differs from session to session")
    return text


def _joined(content: Any, place: str) -> str:
    return joined_text(content, place, "text blocks", _text_block)


def _of_user(blocks: list[Any], place: str) -> list[Message]:
    results: list[Message] = []
    texts: list[str] = []

    def take(block: Any, at: str) -> None:
        if _kind(block) == "tool_result":
            results.append(_result(block, at))
        else:
            texts.append(_text_of(block, at))

    usable(placed(blocks, place), take, MESSAGES_ROUTE)
    return results + ([{"role": "user", "content": "\n".join(texts)}] if texts or not results else [])


def _result(block: dict[str, Any], place: str) -> Message:
    check_fields(block, _RESULT, MESSAGES_ROUTE, place)
    content = block.get("content")
    if isinstance(content, list):
        kept = usable(placed(content, f"{place}.content"), _text_of, MESSAGES_ROUTE)
        content = "\n".join(text for _, text in kept)
    elif not isinstance(content, str | None):
        raise refusal(f"{place}.content", "must be a text or a list of text blocks.")
    return {"role": "tool", "tool_call_id": text_field(block, "tool_use_id", place), "content": content or ""}


def _of_assistant(blocks: list[Any], place: str) -> list[Message]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []

    def take(block: Any, at: str) -> None:
        kind = _kind(block)
        if kind == "tool_use":
            calls.append(_call(block, at))
        elif kind == "thinking":
            check_fields(block, _THINKING, MESSAGES_ROUTE, at)
            thoughts.append(text_field(block, "thinking", at))
        else:
            texts.append(_text_of(block, at))

    usable(placed(blocks, place), take, MESSAGES_ROUTE)
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _call(block: dict[str, Any], place: str) -> dict[str, Any]:
    check_fields(block, _CALL, MESSAGES_ROUTE, place)
    given = block.get("input")
    if not isinstance(given, dict):
        raise refusal(f"{place}.input", "must be an object.")
    arguments = json.dumps(given, ensure_ascii=False)
    return call_message(text_field(block, "id", place), text_field(block, "name", place), arguments)


# Blocks that are text.


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else block
    return kind if isinstance(kind, str) else str(kind)[:32]


def _text_of(block: Any, place: str) -> str:
    """Raises Unusable for what is no text and need not be seen, VLLMValidationError for what must."""
    kind = _kind(block)
    if isinstance(block, dict) and kind in _READERS:
        return _READERS[kind](block, place)
    if kind == "redacted_thinking":
        raise Unusable("it is encrypted")
    if kind in _RAN_ELSEWHERE or (kind.endswith("_tool_result") and kind != "tool_result"):
        raise Unusable(f"a {kind[:64]} is not known to a chat template")
    raise refusal(f"{place}.type", f"{kind[:32]!r} is not supported here: text alone is.")


def _text_block(block: Any, place: str) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        raise refusal(f"{place}.type", f"{_kind(block)[:32]!r} is not supported here: text alone is.")
    check_fields(block, _TEXT, MESSAGES_ROUTE, place)
    return text_field(block, "text", place)


def _document(block: dict[str, Any], place: str) -> str:
    check_fields(block, _DOCUMENT, MESSAGES_ROUTE, place)
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("text", "content"):
        raise refusal(f"{place}.source.type", f"{str(kind)[:32]!r} is not supported here: documents of type text are.")
    text = text_field(source, "data", f"{place}.source") if kind == "text" else _content(source, f"{place}.source")
    return _lines(block, ("title", "context"), text)


def _search_result(block: dict[str, Any], place: str) -> str:
    check_fields(block, _SEARCHED, MESSAGES_ROUTE, place)
    return _lines(block, ("title", "source"), _content(block, place))


def _content(holder: dict[str, Any], place: str) -> str:
    return _joined(holder.get("content"), f"{place}.content")


def _lines(block: dict[str, Any], names: tuple[str, ...], text: str) -> str:
    """The text below what the block says about it."""
    return "\n".join([*(block[name] for name in names if isinstance(block.get(name), str)), text])


def _tool_reference(block: dict[str, Any], place: str) -> str:
    check_fields(block, _REFERENCE, MESSAGES_ROUTE, place)
    return text_field(block, "tool_name", place)


def _compaction(block: dict[str, Any], place: str) -> str:
    """The summary of what was there before."""
    check_fields(block, _COMPACTION, MESSAGES_ROUTE, place)
    return text_field(block, "content", place)


_READERS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "compaction": _compaction,
    "document": _document,
    "search_result": _search_result,
    "text": _text_block,
    "tool_reference": _tool_reference,
}


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
