"""A small client of the server's API for the terminal: what `vllm chat` and `vllm complete` share.

Only the standard library, so that both work wherever the package does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from vllm import envs
from vllm.entrypoints.cli.terminal import TerminalWriter
from vllm.logger import visible


def add_client_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://localhost:8000/v1", help="Base of the server's API.")
    parser.add_argument("--model-name", default=None, help="Model to use. Default: the first that the server has.")
    parser.add_argument(
        "--api-key", default=envs.VLLM_API_KEY or None, help="Key of the server. Default: VLLM_API_KEY."
    )
    parser.add_argument("-q", "--quick", metavar="TEXT", default=None, help="Send one text, print the answer, end.")
    parser.add_argument("--max-tokens", type=int, default=None, help="Most tokens of an answer.")
    parser.add_argument("--stats", action="store_true", help="After each answer, print tokens and times.")


class ServerError(Exception):
    """The server could not be reached, or refused. The message is for the user, and a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


class Client:
    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._model = model

    @property
    def model(self) -> str:
        if self._model is None:
            with self._open("/models") as response:
                self._model = str(json.load(response)["data"][0]["id"])
        return self._model

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer, the usage last."""
        options = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        with self._open(path, {**options, **body}) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise ServerError(chunk["error"]["message"])
                yield chunk

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            raise ServerError(_message_of(error)) from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ServerError(f"no server answers at {self._url}: {getattr(error, 'reason', error)}") from None


def _message_of(error: urllib.error.HTTPError) -> str:
    text = error.read().decode("utf-8", "replace")
    try:
        return f"{error.code}: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code}: {text[:200] or error.reason}"


class Answer:
    """Prints an answer as it comes, and times it."""

    def __init__(self, stats: bool) -> None:
        self.text = ""
        self._stats = stats
        self._out = TerminalWriter(sys.stdout)
        self._started = time.perf_counter()
        self._first: float | None = None

    def add(self, text: str) -> None:
        if text and self._first is None:
            self._first = time.perf_counter()
        self.text += text
        self._out.write(text)

    def finish(self, usage: dict[str, Any] | None) -> None:
        self._out.finish()
        if self._stats and usage:
            print(self._summary(usage), file=sys.stderr)

    def _summary(self, usage: dict[str, Any]) -> str:
        now = time.perf_counter()
        first = now if self._first is None else self._first
        num_output = usage["completion_tokens"]
        rate = (num_output - 1) / (now - first) if num_output > 1 and now > first else 0.0
        return (
            f"[{usage['prompt_tokens']} prompt tokens, {num_output} generated; "
            f"first after {first - self._started:.2f} s, then {rate:.1f} tokens/s]"
        )


def read_lines(prompt: str) -> Iterator[str]:
    """What the user types, until end of file or interrupt."""
    while True:
        try:
            line = input(prompt)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip():
            yield line
