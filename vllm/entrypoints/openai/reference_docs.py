"""The reference of the server, made from the code, so that it cannot say anything else.

`python -m vllm.entrypoints.openai.reference_docs FILE` writes `docs/server_reference.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import FrontendArgs, validate_args
from vllm.entrypoints.openai.foreign_args import FOREIGN_FRONTEND_OPTIONS
from vllm.entrypoints.openai.middleware.authentication import OPEN_PATHS
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.openai.protocol.base import OpenAIBaseModel
from vllm.entrypoints.openai.protocol.sampling import SamplingFields

_HEAD = """\
# Server reference

Made from the code. [The server](server.md) says how it behaves.
"""


def page() -> str:
    pieces = [_HEAD, "## Routes\n", _table(["Route", "Methods", "Needs a key"], _routes(_app()))]
    pieces += ["Every other path needs a key too, where keys are set.\n"]
    pieces += ["## Options of the server\n", _table(["Option", "Default", "Meaning"], _options(FrontendArgs))]
    pieces += ["## Options of vLLM's server that are not here\n", _table(["Option", "Why"], _foreign_options())]
    pieces += ["## Options of the engine\n", _table(["Option", "Default", "Meaning"], _options(AsyncEngineArgs))]
    pieces += ["## Fields of both kinds of request\n", _fields_table(SamplingFields, ())]
    shared = SamplingFields.model_fields
    pieces += ["## Fields of `/v1/completions`\n", _fields_table(CompletionRequest, shared)]
    pieces += ["## Fields of `/v1/chat/completions`\n", _fields_table(ChatCompletionRequest, shared)]
    pieces += ["## Fields that are refused\n", _unsupported_note(), _table(["Field", "Why"], _unsupported())]
    return "\n".join(pieces)


def _app() -> FastAPI:
    engine = vars(AsyncEngineArgs())
    args = argparse.Namespace(**{**engine, "model_tag": None, **dataclasses.asdict(FrontendArgs())})
    validate_args(args)
    return build_app(args)


def _routes(app: FastAPI) -> Iterator[list[str]]:
    for path, methods in app.openapi()["paths"].items():
        yield [f"`{path}`", ", ".join(method.upper() for method in methods), "no" if path in OPEN_PATHS else "yes"]


def _options(cls: Any) -> Iterator[list[str]]:
    defaults = cls()
    for field in dataclasses.fields(cls):
        names = [f"`--{field.name.replace('_', '-')}`", *(f"`{name}`" for name in field.metadata.get("aliases", ()))]
        yield [", ".join(names), _code(getattr(defaults, field.name)), field.metadata["help"]]


def _foreign_options() -> Iterator[list[str]]:
    for name, option in FOREIGN_FRONTEND_OPTIONS.items():
        effect = "Refused" if option.refused else "No effect"
        yield [f"`--{name.replace('_', '-')}`", f"{effect}: {option.reason}."]


def _fields_table(cls: type[OpenAIBaseModel], without: Iterable[str]) -> str:
    rows = [
        [f"`{name}`", _code(field.get_default(call_default_factory=True)), field.description or ""]
        for name, field in cls.model_fields.items()
        if name not in without
    ]
    return _table(["Field", "Default", "Meaning"], rows)


def _unsupported_note() -> str:
    return "Known, and not available; a value that asks for nothing (null, or the default) passes.\n"


def _unsupported() -> Iterator[list[str]]:
    known = {**CompletionRequest.unsupported, **ChatCompletionRequest.unsupported}
    for name, (reason, _) in sorted(known.items()):
        yield [f"`{name}`", reason]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(value: Any) -> str:
    return "" if value in (None, "", [], {}) or "Undefined" in str(value) else f"`{value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
