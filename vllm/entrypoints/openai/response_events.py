"""The items of a response, and the events that tell how they come to be.

An item opens (`output_item.added`), its text grows, and it closes (`output_item.done`); messages and reasoning have one
part each, whose events lie between. Events are numbered from 0. A stream has no `[DONE]`: it ends with the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vllm.entrypoints.openai.blocks import Block, Change, Closed, Kind, Opened
from vllm.entrypoints.openai.protocol import ErrorResponse, ResponsesResponse

_encoder = msgspec.json.Encoder()
_GROWS: dict[Kind, str] = {
    "text": "output_text",
    "reasoning": "reasoning_text",
    "call": "function_call_arguments",
}


Namespaces = Mapping[str, tuple[str, str]]
"""Of functions that the model was shown under another name, their namespace and their own name."""


def item_of(block: Block, logprobs: list[Any], status: str, namespaces: Namespaces) -> dict[str, Any]:
    """The item of a whole block. logprobs: of all tokens of a message, or empty."""
    if block.kind == "call":
        return {**_call_item(block, status, namespaces), "arguments": block.text}
    return {**_bare_item(block, status), "content": [_part(block, block.text, logprobs)]}


def item_status(is_last: bool, is_cut: bool) -> str:
    """Where an output was cut off by its length, its last item is incomplete."""
    return "incomplete" if is_last and is_cut else "completed"


def _bare_item(block: Block, status: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"id": f"rs_{block.id}", "type": "reasoning", "summary": [], "content": [], "status": status}
    return {"id": f"msg_{block.id}", "type": "message", "role": "assistant", "content": [], "status": status}


def _call_item(block: Block, status: str, namespaces: Namespaces) -> dict[str, Any]:
    return {
        "id": f"fc_{block.id}",
        "type": "function_call",
        "call_id": f"call_{block.id}",
        **_function(block, namespaces),
        "arguments": "",
        "status": status,
    }


def _function(block: Block, namespaces: Namespaces) -> dict[str, str]:
    if block.name not in namespaces:
        return {"name": block.name}
    namespace, name = namespaces[block.name]
    return {"namespace": namespace, "name": name}


def _part(block: Block, text: str, logprobs: list[Any]) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class ResponseEvents:
    """Numbers the events of one stream, and knows what it told."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._number = 0
        self._num_logprobs = 0

    def lifecycle(self, name: str, response: ResponsesResponse) -> bytes:
        """`response.created`, `in_progress`, `completed`, `incomplete`."""
        return self._event(f"response.{name}", response=response.model_dump())

    def failure(self, error: ErrorResponse) -> bytes:
        """What a stream that fails ends with."""
        told = error.error
        return self._event("error", code=told.type, message=told.message, param=told.param)

    def change(self, change: Change, all_logprobs: list[Any], is_cut: bool) -> bytes:
        """The events of a change of the row. all_logprobs: of the output so far; text comes with those of its tokens.
        is_cut: whether the output was cut off by its length with this piece.
        """
        block = change.block
        if isinstance(change, Opened):
            return self._opened(block)
        if isinstance(change, Closed):
            return self._closed(block, all_logprobs, item_status(True, is_cut))
        logprobs = {"logprobs": self._new_logprobs(all_logprobs)} if block.kind == "text" else {}
        return self._of_block(block, f"response.{_GROWS[block.kind]}.delta", delta=change.piece, **logprobs)

    def _new_logprobs(self, logprobs: list[Any]) -> list[Any]:
        known, self._num_logprobs = self._num_logprobs, len(logprobs)
        return logprobs[known:]

    def _opened(self, block: Block) -> bytes:
        item = (
            _call_item(block, "in_progress", self._namespaces)
            if block.kind == "call"
            else _bare_item(block, "in_progress")
        )
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return added
        return added + self._of_block(block, "response.content_part.added", part=_part(block, "", []))

    def _closed(self, block: Block, logprobs: list[Any], status: str) -> bytes:
        item = item_of(block, logprobs, status, self._namespaces)
        done = f"response.{_GROWS[block.kind]}.done"
        if block.kind == "call":
            ended = self._of_block(block, done, name=_function(block, self._namespaces)["name"], arguments=block.text)
        else:
            found = {"logprobs": logprobs} if block.kind == "text" else {}
            ended = self._of_block(block, done, text=block.text, **found)
            ended += self._of_block(block, "response.content_part.done", part=item["content"][0])
        return ended + self._event("response.output_item.done", output_index=block.index, item=item)

    def _of_block(self, block: Block, type: str, **fields: Any) -> bytes:
        prefix = {"text": "msg", "reasoning": "rs", "call": "fc"}[block.kind]
        place = {} if block.kind == "call" else {"content_index": 0}
        return self._event(type, item_id=f"{prefix}_{block.id}", output_index=block.index, **place, **fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return named_event(type, {"type": type, "sequence_number": number, **fields})


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event of an API whose events have names."""
    return b"event: " + name.encode() + b"\ndata: " + _encoder.encode(data) + b"\n\n"
