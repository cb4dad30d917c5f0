"""The OpenAI-compatible server: `python -m vllm.entrypoints.openai.api_server --model ...`, or `vllm serve`.

run_server ─ setup_server         arguments checked, socket bound
           ─ fronts.owner         with --api-server-count above 1; each front then does what follows
           ─ build_app            routes and middleware
           ─ launcher.serve_http  listens at once, until told to stop
             ─ EngineLife.run     the engine, in its own process, started while /health tells how far it is
               ─ init_app_state   serving classes, on `app.state`: from here on requests are taken
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvloop

from vllm import envs
from vllm.engine.client import EngineClient
from vllm.entrypoints.openai.app import (
    LISTENING,
    SERVING,
    START_ERRORS,
    build_app,
    build_async_engine_client,
    init_app_state,
    start_engine,
)
from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args, validate_args
from vllm.entrypoints.openai.fronts.owner import serve_fronts
from vllm.entrypoints.server.access_log import hide_from_access_log
from vllm.entrypoints.server.connections import raise_descriptor_limit
from vllm.entrypoints.server.engine_life import EngineLife
from vllm.entrypoints.server.launcher import (
    address_of,
    create_socket,
    heeds_hangup,
    is_loopback,
    removed_at_the_end,
    serve_http,
)
from vllm.logger import init_logger
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.heap import freeze_heap

if TYPE_CHECKING:
    pass

logger = init_logger("vllm.entrypoints.openai.api_server")  # also where this module is the program


def setup_server(args: argparse.Namespace) -> tuple[str, socket.socket]:
    """The address and the bound socket. What can fail early does: contradicting options, a port that is taken."""
    validate_args(args)
    raise_descriptor_limit()
    sock = create_socket(args)
    address = address_of(sock, args)
    if not is_loopback(sock) and not args.api_key:
        logger.warning("%s is open to other machines, and no --api-key is set", address)
    signal.signal(signal.SIGTERM, _interrupt)
    if heeds_hangup():
        signal.signal(signal.SIGHUP, _interrupt)
    return address, sock


def _interrupt(*_: Any) -> None:
    """A signal while the engine starts: unwind, so that its process is not left behind."""
    raise KeyboardInterrupt


async def run_server(args: argparse.Namespace) -> int:
    """Serve until told to stop. The process's exit status."""
    address, sock = setup_server(args)
    with removed_at_the_end(args.uds):
        if args.api_server_count > 1:
            return await serve_fronts(args, sock, address)
        return await _serve_alone(args, sock, address)


async def _serve_alone(args: argparse.Namespace, sock: socket.socket, address: str) -> int:
    app = build_app(args)
    if args.disable_access_log_for_endpoints:
        hide_from_access_log(args.disable_access_log_for_endpoints.split(","))

    async def install(engine_client: EngineClient) -> None:
        await init_app_state(engine_client, app.state, args)
        freeze_heap()
        logger.info(SERVING, ", ".join(app.state.openai_serving_models.names), address)

    life = EngineLife(app.state, lambda progress: start_engine(args, progress), install, args.max_engine_restarts)
    logger.info(LISTENING, address)
    with sock:
        try:
            return await serve_http(app, sock, args, life.run())
        finally:
            life.shutdown()


def run(args: argparse.Namespace) -> int:
    return report_start_errors(lambda: uvloop.run(run_server(args)))


def report_start_errors(work: Callable[[], int]) -> int:
    """The exit status of `work`. What users can mend is one line of the log."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except START_ERRORS as error:
        logger.error("cannot start: %s", error, exc_info=envs.VLLM_LOGGING_LEVEL == "DEBUG")
        return 1


def main(argv: list[str] | None = None) -> int:
    parser = make_arg_parser(FlexibleArgumentParser(prog="python -m vllm.entrypoints.openai.api_server"))
    return run(parse_server_args(parser, sys.argv[1:] if argv is None else argv))


__all__ = ["build_app", "build_async_engine_client", "init_app_state", "main", "run_server", "setup_server"]


if __name__ == "__main__":
    sys.exit(main())
