"""The endpoints a server is measured by: what a request to them looks like, and what its stream tells.

Output tokens are those of the server's usage report; where it sends none, the text is counted with the tokenizer.
A piece of text counts as it arrives, whether it holds one token or several; events without text (the role of a chat
answer, the end) are no first token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vllm.entrypoints.bench.http_client import Exchange
from vllm.entrypoints.bench.results import RequestResult

_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Endpoint:
    """path: where. prompt: its field of the body. text: that of a choice of the stream."""

    path: str
    prompt: Callable[[str], dict[str, Any]]
    text: Callable[[dict[str, Any]], str | None]


def _delta_text(choice: dict[str, Any]) -> str | None:
    delta = choice.get("delta") or {}
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")


COMPLETIONS = Endpoint("/v1/completions", lambda text: {"prompt": text}, lambda choice: choice.get("text"))
CHAT = Endpoint("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}, _delta_text)
ENDPOINTS = {"openai": COMPLETIONS, "vllm": COMPLETIONS, "openai-chat": CHAT}
"""By the name of the backend."""


def request_body(endpoint: Endpoint, model: str, prompt: str, output_len: int, options: dict[str, Any]) -> bytes:
    """options: further fields, which go before these."""
    length = "max_completion_tokens" if endpoint is CHAT else "max_tokens"
    body = {
        "model": model,
        **endpoint.prompt(prompt),
        length: output_len,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    return json.dumps(body).encode()


def read_stream(
    endpoint: Endpoint, exchange: Exchange, prompt_len: int, count_tokens: Callable[[str], int]
) -> RequestResult:
    """What a finished exchange tells. prompt_len: used where the server reports no usage."""
    result = RequestResult(prompt_len, start=exchange.sent)
    if exchange.status != 200:
        result.error = f"HTTP {exchange.status}: {error_text(exchange.body)}"
        return result
    try:
        _read_events(endpoint, exchange, result, count_tokens)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        result.error = f"the stream cannot be read: {type(error).__name__}: {error}"
    return result


def _read_events(
    endpoint: Endpoint, exchange: Exchange, result: RequestResult, count_tokens: Callable[[str], int]
) -> None:
    pieces: list[tuple[float, str]] = []
    usage: dict[str, Any] = {}
    first = last = None
    finished = False
    for moment, event in events(exchange):
        if "error" in event:
            result.error = error_text(json.dumps(event).encode())
            return
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            first, last = first or moment, moment
            finished |= choice.get("finish_reason") is not None
            if text := endpoint.text(choice):
                pieces.append((moment, text))
    if first is None or last is None or not finished:
        result.error = "the stream ended without a finish_reason"
        return
    moments = [moment for moment, _ in pieces]
    result.text = "".join(text for _, text in pieces)
    result.ttft = (moments[0] if moments else first) - exchange.sent
    result.e2el = last - exchange.sent
    result.itl = [after - before for before, after in pairwise(moments)]
    result.output_len = usage.get("completion_tokens") or count_tokens(result.text)
    result.prompt_len = usage.get("prompt_tokens") or result.prompt_len


def events(exchange: Exchange) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON events of a stream, each with the time at which its end came."""
    rest = b""
    for moment, data in exchange.reads:
        *blocks, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            payload = b"\n".join(lines)
            if payload and payload != b"[DONE]":
                yield moment, json.loads(payload)


def error_text(body: bytes) -> str:
    """The message of an error body, or its beginning."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:_ERROR_CHARACTERS] or "no body"
