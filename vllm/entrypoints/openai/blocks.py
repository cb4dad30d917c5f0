"""An output as a row of blocks: reasoning, text, calls of tools, in the order in which the model wrote them.

`/v1/responses` and `/v1/messages` both show an output so, plain and streamed. `Blocks` is fed an output's text and says
what happens to the row: a block opens, grows, closes, and only then the next one opens. A row is never empty: an output
of nothing is one text block without text.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from vllm.entrypoints.chat_output.parsers import CallArguments, CallStart, Content, Part, Reasoning
from vllm.entrypoints.chat_output.parsers.reasoning import Preceding
from vllm.entrypoints.chat_output.reasoning import ReasoningMarkers
from vllm.entrypoints.openai.chat_output import CallFilter, build_parser, reasons
from vllm.entrypoints.openai.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.serving_engine import ServingOptions
from vllm.outputs import CompletionOutput

Kind = Literal["reasoning", "text", "call"]


class Block:
    """index: its place in the row. name: of the function that a call is of, whose arguments are then the text."""

    def __init__(self, index: int, kind: Kind, name: str) -> None:
        self.index = index
        self.kind = kind
        self.name = name
        self.id = uuid.uuid4().hex
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def grow(self, piece: str) -> None:
        self._pieces.append(piece)


class Opened(NamedTuple):
    block: Block


class Grown(NamedTuple):
    block: Block
    piece: str


class Closed(NamedTuple):
    block: Block


Change = Opened | Grown | Closed


class Blocks:
    """Of one output of a request."""

    def __init__(
        self, request: ChatCompletionRequest, options: ServingOptions, markers: ReasoningMarkers, preceding: Preceding
    ) -> None:
        self._parser = build_parser(request, options, markers, preceding)
        self._counter = markers.counter(preceding) if reasons(request, options, markers) else None
        self._shows_reasoning = request.include_reasoning
        self._calls = CallFilter(request)
        self.row: list[Block] = []

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    @property
    def num_reasoning_tokens(self) -> int:
        return 0 if self._counter is None else self._counter.num_tokens

    def feed(self, completion: CompletionOutput) -> Iterator[Change]:
        """What this piece of the output changes; with the last one, the row is closed."""
        finished = completion.finish_reason is not None
        parts = self._calls.taken(self._parser.feed(completion.text) + (self._parser.finish() if finished else []))
        if self._counter is not None:
            reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
            self._counter.feed(completion.token_ids, reasoning)
        for part in parts:
            yield from self._take(part)
        if finished:
            if not self.row:
                yield self._open("text")
            yield from self._close()

    def message(self) -> dict[str, Any]:
        """The row as the assistant's message of a conversation that goes on."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text_of("text") or None}
        if reasoning := self._text_of("reasoning"):
            message["reasoning_content"] = reasoning
        calls = [block for block in self.row if block.kind == "call"]
        if calls:
            message["tool_calls"] = [call_message(block.id, block.name, block.text) for block in calls]
        elif message["content"] is None:
            message["content"] = ""
        return message

    def _text_of(self, kind: Kind) -> str:
        return "".join(block.text for block in self.row if block.kind == kind)

    def _take(self, part: Part) -> Iterator[Change]:
        if isinstance(part, CallStart):
            yield from self._close()
            yield self._open("call", part.name)
        elif isinstance(part, CallArguments):
            yield self._grow(part.text)
        elif isinstance(part, (Content, Reasoning)) and self._is_shown(part):
            kind: Kind = "reasoning" if isinstance(part, Reasoning) else "text"
            if self._last_kind != kind:
                yield from self._close()
                yield self._open(kind)
            yield self._grow(part.text)

    def _is_shown(self, part: Content | Reasoning) -> bool:
        return bool(part.text) and (self._shows_reasoning or isinstance(part, Content))

    @property
    def _last_kind(self) -> Kind | None:
        return self.row[-1].kind if self.row else None

    def _open(self, kind: Kind, name: str = "") -> Opened:
        self.row.append(Block(len(self.row), kind, name))
        return Opened(self.row[-1])

    def _grow(self, piece: str) -> Grown:
        self.row[-1].grow(piece)
        return Grown(self.row[-1], piece)

    def _close(self) -> Iterator[Closed]:
        """The last block closes when the next one opens, or when the output ends."""
        if self.row:
            yield Closed(self.row[-1])


def call_message(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call in an assistant's message, as chat templates know it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
