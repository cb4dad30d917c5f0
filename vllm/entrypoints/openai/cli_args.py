"""The server's own options; the engine's come from `AsyncEngineArgs`.

Each option is a field of `FrontendArgs`, with its default and its help: the parser and the reference in `docs/` are
made from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import ssl
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm import envs
from vllm.config import option
from vllm.engine.arg_utils import AsyncEngineArgs, add_option
from vllm.entrypoints.chat_output.parsers import REASONING_PARSERS, TOOL_PARSERS
from vllm.entrypoints.chat_output.strict_tools import LEVELS
from vllm.entrypoints.openai.foreign_args import add_foreign_args, check_foreign_args
from vllm.entrypoints.openai.middleware.limits import DEFAULT_MAX_HEADER_BYTES, DEFAULT_MAX_HEADERS
from vllm.entrypoints.server.http_protocol import DEFAULT_BODY_SECONDS
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

MAX_API_SERVERS = 64


@dataclass(frozen=True, kw_only=True)
class FrontendArgs:
    host: str | None = option(None, "Address to listen on. Default: 127.0.0.1, this machine only; 0.0.0.0: everybody.")
    port: int = option(8000, "Port to listen on; 0: any free one.")
    uds: str | None = option(None, "Unix socket to listen on, instead of host and port.", path=True)
    uvicorn_log_level: str = option(
        "info", "Log level of the HTTP layer.", choices=["critical", "error", "warning", "info", "debug", "trace"]
    )
    disable_uvicorn_access_log: bool = option(False, "Do not log each request.")
    disable_access_log_for_endpoints: str | None = option(
        None, "Paths, separated by commas, whose requests are not logged: /health,/metrics."
    )
    allow_credentials: bool = option(False, "CORS: let browsers send credentials.")
    allowed_origins: list[str] = option([], "CORS: origins whose pages may use this server, as JSON.")
    allowed_methods: list[str] = option(["*"], "CORS: methods, as JSON.")
    allowed_headers: list[str] = option(["*"], "CORS: headers, as JSON.")
    api_key: list[str] | None = option(
        None,
        "Keys, one of which each request must bring; also VLLM_API_KEY. Open: /health, /live, /ping, /metrics, /.",
        nargs="+",
    )
    ssl_keyfile: str | None = option(None, "TLS: file of the private key.", path=True)
    ssl_certfile: str | None = option(None, "TLS: file of the certificate.", path=True)
    ssl_ca_certs: str | None = option(None, "TLS: file of the authorities for client certificates.", path=True)
    ssl_cert_reqs: int = option(
        int(ssl.CERT_NONE), "TLS: client certificates: 0 none, 1 optional, 2 required.", choices=[0, 1, 2]
    )
    root_path: str = option("", "Path under which a proxy shows this server.")
    middleware: list[str] = option(
        [], "ASGI middleware class or function, as module.name; may be repeated.", action="append"
    )
    chat_template_content_format: str = option(
        "auto", "Whether templates are given message content as text or as parts.", choices=["auto", "string", "openai"]
    )
    trust_request_chat_template: bool = option(
        False, "Take chat templates from requests. They are programs: trust the clients."
    )
    default_chat_template_kwargs: dict[str, Any] = option({}, "Variables of the chat template, as JSON.", type="json")
    response_role: str = option("assistant", "Role of chat answers.")
    enable_auto_tool_choice: bool = option(False, "Look for tool calls in outputs; needs --tool-call-parser.")
    tool_call_parser: str | None = option(None, f"How the model writes tool calls: {', '.join(sorted(TOOL_PARSERS))}.")
    tool_parser_plugin: str | None = option(
        None, "Python file that is run and registers further tool parsers; see docs/tool_calling.md.", path=True
    )
    reasoning_parser_plugin: str | None = option(
        None, "The same for reasoning parsers; one file may register both.", path=True
    )
    tool_strict_level: str = option(
        "auto",
        "What calls with tool_choice auto are held to: the schemas of `strict` tools (auto), also the names of all "
        "(function), or the schemas of all (parameter).",
        choices=list(LEVELS),
    )
    reasoning_parser: str | None = option(
        None,
        f"How the model marks its reasoning, which is then set apart: {', '.join(sorted(REASONING_PARSERS))}.",
    )
    exclude_tools_when_tool_choice_none: bool = option(False, "Do not show tools to the model with tool_choice none.")
    strict_max_tokens: bool = option(
        False, "Refuse a max_tokens beyond what the prompt leaves of max_model_len, instead of cutting it."
    )
    return_tokens_as_token_ids: bool = option(False, "Name tokens in logprobs by token_id:<id>.")
    enable_request_id_headers: bool = option(False, "Send X-Request-Id with every response.")
    enable_prompt_tokens_details: bool = option(False, "Report cached prompt tokens in the usage.")
    enable_force_include_usage: bool = option(False, "End every stream with the usage.")
    enable_server_load_tracking: bool = option(False, "Accepted for compatibility: /load always tells.")
    enable_log_outputs: bool = option(False, "Log what is answered.")
    max_log_len: int | None = option(None, "Characters of a prompt or an output that are logged. Default: all.")
    sse_keep_alive_interval: float = option(0, "Seconds of silence after which a stream carries a comment; 0: never.")
    disable_fastapi_docs: bool = option(False, "No /docs, /redoc and /openapi.json.")
    disable_dashboard: bool = option(False, "No page that shows the engine at work, at / and /dashboard.")
    shutdown_timeout: float = option(0, "Seconds that running requests get at SIGTERM; new ones are refused at once.")
    request_timeout: float = option(
        0, "Seconds that a request may take, its wait included; then it ends with 504, or a stream with an error event."
    )
    max_engine_restarts: int = option(
        0, "How many times an engine that died is replaced by a new one; then the server ends with status 1."
    )
    api_server_count: int = option(
        1,
        "Processes that answer HTTP before one engine, on one socket; see docs/server.md for when more help.",
        aliases=["-asc"],
    )
    max_body_bytes: int | None = option(
        None,
        "Largest request body; beyond: 413. Default: 32 MiB where images are taken, else 32 bytes per token of "
        "max_model_len, from 4 MiB to 32 MiB.",
    )
    body_timeout: float = option(
        DEFAULT_BODY_SECONDS, "Seconds that a request's body may take to arrive; beyond: 408. 0: no limit."
    )
    max_header_bytes: int = option(
        DEFAULT_MAX_HEADER_BYTES, "Largest request headers; beyond: 431.", aliases=["--h11-max-incomplete-event-size"]
    )
    max_header_count: int = option(
        DEFAULT_MAX_HEADERS, "Most request headers; beyond: 431.", aliases=["--h11-max-header-count"]
    )


def make_arg_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add all options of the server, its own and the engine's, to `parser`."""
    parser.add_argument("model_tag", nargs="?", default=None, help="The model; the same as --model.")
    parser.add_argument("--config", metavar="FILE", default=None, help="YAML file of options; others go before it.")
    group = parser.add_argument_group("Frontend")
    hints = typing.get_type_hints(FrontendArgs)
    for field in dataclasses.fields(FrontendArgs):
        add_option(group, field, hints[field.name])
    AsyncEngineArgs.add_cli_args(parser)
    add_foreign_args(parser)
    return parser


def parse_server_args(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Faults end the program with status 2, as argparse does."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_words(parser, unknown))
    try:
        validate_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def validate_args(args: argparse.Namespace) -> None:
    """Bring options to their types. Raises ValueError for those that contradict one another."""
    check_foreign_args(args)
    if args.model_tag is not None:
        args.model = args.model_tag
    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        setattr(args, name, _list_of(name, getattr(args, name)))
    if bool(args.ssl_keyfile) != bool(args.ssl_certfile):
        raise ValueError("--ssl-keyfile and --ssl-certfile belong together")
    if args.allow_credentials and "*" in args.allowed_origins:
        raise ValueError("--allow-credentials needs named --allowed-origins, not *")
    _check_parsers(args)
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        raise ValueError("--enable-auto-tool-choice needs --tool-call-parser")
    if args.uds and args.host:
        raise ValueError("--uds and --host exclude one another")
    if args.api_key is None and envs.VLLM_API_KEY:
        args.api_key = [envs.VLLM_API_KEY]
    if args.api_key and not all(args.api_key):
        raise ValueError("--api-key must not be empty")
    for name in ("request_timeout", "body_timeout"):
        if not 0 <= (seconds := getattr(args, name)) < math.inf:
            raise ValueError(f"{_flag(name)} must be a number of seconds, or 0 for none, not {seconds:g}")
    if args.max_engine_restarts < 0:
        raise ValueError(f"--max-engine-restarts must not be negative, not {args.max_engine_restarts}")
    if not 1 <= args.api_server_count <= MAX_API_SERVERS:
        raise ValueError(f"--api-server-count must be from 1 to {MAX_API_SERVERS}, not {args.api_server_count}")
    for name in ("max_body_bytes", "max_header_bytes", "max_header_count"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"{_flag(name)} must be positive, not {getattr(args, name)}")


def load_plugins(args: argparse.Namespace) -> None:
    """Have what the operator's files register, in this process."""
    for path in dict.fromkeys((args.tool_parser_plugin, args.reasoning_parser_plugin)):
        if path:
            ToolParserManager.import_tool_parser(path)


def _check_parsers(args: argparse.Namespace) -> None:
    load_plugins(args)
    for manager, name in ((ToolParserManager, args.tool_call_parser), (ReasoningParserManager, args.reasoning_parser)):
        try:
            manager.get(name or manager.list_registered()[0])
        except KeyError as error:
            raise ValueError(error.args[0]) from None


def _unknown_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    word = next((word for word in words if word.startswith("-")), words[0])
    known = [flag for action in parser._actions for flag in action.option_strings]
    nearest = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"unknown option {word!r}" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _list_of(name: str, value: Any) -> list[str]:
    """A list, or the JSON of one."""
    try:
        entries = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{_flag(name)} {value!r} is not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f'{_flag(name)} must be a JSON list of texts, such as ["https://a.example"], not {value!r}')
    return entries


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
