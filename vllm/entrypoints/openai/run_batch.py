"""Files of requests in the form of OpenAI's batch API, answered as the server does.

A line in:   {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
A line out:  {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

Lines come out in the order in which they went in. A line that fails carries its error and its status; the others go on.
Files are local: an address is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import uvloop
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import State

from vllm.entrypoints.openai.api_server import report_start_errors
from vllm.entrypoints.openai.app import build_async_engine_client, init_app_state
from vllm.entrypoints.openai.bodies import BodyReader
from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args
from vllm.entrypoints.openai.errors import error_from
from vllm.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
    ResponsesRequest,
)
from vllm.entrypoints.openai.protocol.messages import MessagesRequest
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.logger import init_logger
from vllm.utils.argparse_utils import FlexibleArgumentParser

logger = init_logger("vllm.entrypoints.openai.run_batch")

MAX_AT_ONCE = 256
REQUESTS: dict[
    str, type[ChatCompletionRequest] | type[CompletionRequest] | type[ResponsesRequest] | type[MessagesRequest]
] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
}


class BatchLine(BaseModel):
    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class BatchRunner:
    """state: as `init_app_state` leaves it."""

    def __init__(self, state: State) -> None:
        self._answer = {
            "/v1/chat/completions": state.openai_serving_chat.create_chat_completion,
            "/v1/completions": state.openai_serving_completion.create_completion,
            "/v1/responses": state.openai_serving_responses.create_response,
            "/v1/messages": state.serving_messages.create_message,
        }
        self._bodies: BodyReader = state.bodies
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, text: str) -> dict[str, Any]:
        """The answer to one line. Never raises for what is wrong with the line."""
        custom_id = None
        async with self._slots:
            try:
                fields = await self._bodies.read(text.encode("utf-8", "surrogateescape"), lambda value: value)
                custom_id = _custom_id(fields)
                result = await self._run(BatchLine.model_validate(fields))
            except json.JSONDecodeError as fault:
                result = error_from(VLLMValidationError(f"The line is not valid JSON: {fault.msg}"))
            except ValidationError as fault:
                result = error_from(RequestValidationError(fault.errors()))
            except Exception as fault:
                result = error_from(fault)
        return _line_out(custom_id, result)

    async def _run(self, line: BatchLine) -> BaseModel:
        if line.url not in REQUESTS:
            raise VLLMNotFoundError(f"The url {line.url[:64]!r} is not served in batches: use {', '.join(REQUESTS)}.")
        request = REQUESTS[line.url].model_validate(line.body)
        for field in ("stream", "background"):
            if getattr(request, field, False):
                raise VLLMValidationError(f"`{field}` is not available in batches.", parameter=field)
        result: BaseModel = await self._answer[line.url](request)
        return result


def _custom_id(fields: Any) -> str | None:
    """Of a line that may be wrong in other places."""
    custom_id = fields.get("custom_id") if isinstance(fields, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def _line_out(custom_id: str | None, result: BaseModel) -> dict[str, Any]:
    status = result.error.code if isinstance(result, ErrorResponse) else 200
    body = result.model_dump(mode="json")
    return {
        "id": f"vllm-{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"vllm-batch-{uuid.uuid4().hex}", "body": body},
        "error": body["error"] if isinstance(result, ErrorResponse) else None,
    }


async def run_file(runner: BatchRunner, source: Path, target: Path) -> tuple[int, int]:
    """Answer every line of `source` into `target`. How many there were, and how many failed."""
    with source.open(encoding="utf-8", errors="surrogateescape") as lines, target.open("w", encoding="utf-8") as out:
        tasks = [asyncio.create_task(runner.run(line)) for line in _filled(lines)]
        failed = 0
        for number, task in enumerate(tasks, 1):
            answer = await task
            failed += answer["error"] is not None
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
            if number % 100 == 0:
                logger.info("%d of %d lines, %d failed", number, len(tasks), failed)
    return len(tasks), failed


def _filled(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())


async def run_batch(args: argparse.Namespace) -> int:
    source, target = Path(args.input_file).expanduser(), Path(args.output_file).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"--input-file {args.input_file!r} is not a file on this machine")
    async with build_async_engine_client(args) as engine_client:
        state = State()
        await init_app_state(engine_client, state, args)
        num_lines, num_failed = await run_file(BatchRunner(state), source, target)
    logger.info("%d lines answered into %s, %d of them with an error", num_lines, target, num_failed)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = FlexibleArgumentParser(prog="vllm run-batch", description="Answer a file of requests.")
    parser.add_argument("-i", "--input-file", required=True, help="JSON lines of requests.")
    parser.add_argument("-o", "--output-file", required=True, help="Where the answers go, as JSON lines.")
    args = parse_server_args(make_arg_parser(parser), sys.argv[1:] if argv is None else argv)
    if args.api_server_count > 1:
        parser.error(f"--api-server-count {args.api_server_count} is for servers: a file is answered in one process")
    return report_start_errors(lambda: uvloop.run(run_batch(args)))


if __name__ == "__main__":
    sys.exit(main())
