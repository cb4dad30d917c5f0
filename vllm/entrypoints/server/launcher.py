"""Runs the application: the listening socket, signals, draining, and the end of the process.

SIGTERM, SIGINT, or SIGHUP of a terminal that closes: /health turns 503 and new requests are refused at once; what
runs gets --shutdown-timeout seconds, then is ended with an error event; then the server stops. A second signal ends
the wait, but for SIGHUP, which some service managers send behind SIGTERM. When the engine dies for good, what runs is
told so, and the process ends with status 1 (unless VLLM_KEEP_ALIVE_ON_ENGINE_DEATH).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from vllm import envs
from vllm.entrypoints.server.acceptor import Acceptor
from vllm.entrypoints.server.access_log import hide_queries
from vllm.entrypoints.server.connections import Connections
from vllm.entrypoints.server.engine_life import died
from vllm.entrypoints.server.http_protocol import BoundedHttpProtocol
from vllm.entrypoints.server.in_flight import InFlight
from vllm.logger import init_logger, use_record_format

logger = init_logger(__name__)

DEFAULT_HOST = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS_SECONDS = 1.0
_CLOSE_SECONDS = 3


def create_socket(args: argparse.Namespace) -> socket.socket:
    """Bound, not yet listening: a port that is taken is found before a model is loaded."""
    if args.uds:
        return _unix_socket(Path(args.uds))
    host = args.host or DEFAULT_HOST
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, args.port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host} port {args.port}: {error.strerror or error}") from None
    return sock


def _unix_socket(path: Path) -> socket.socket:
    """A socket file that nobody listens on is what an earlier server left behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and sock.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()
        sock.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror or error}") from None
    return sock


@contextlib.contextmanager
def removed_at_the_end(path: str | None) -> Iterator[None]:
    """The socket file `path`, if there is one, unless another server has put its own there meanwhile."""
    if path is None:
        yield
        return
    ours = Path(path).stat().st_ino
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if Path(path).stat().st_ino == ours:
                Path(path).unlink()


def heeds_hangup() -> bool:
    """Whether this server ends with its terminal: not if whoever started it had that ignored, as nohup does."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def address_of(sock: socket.socket, args: argparse.Namespace) -> str:
    """What a client would connect to."""
    if args.uds:
        return f"unix:{args.uds}"
    host, port = sock.getsockname()[:2]
    return f"{'https' if args.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or ipaddress.ip_address(sock.getsockname()[0]).is_loopback


async def serve_http(
    app: FastAPI, sock: socket.socket, args: argparse.Namespace, engine_life: Awaitable[None] | None = None
) -> int:
    """Serve until told to stop. The process's exit status. engine_life: as for `build_server`."""
    return await build_server(app, args, engine_life).run_until_stopped(sock)


def build_server(app: FastAPI, args: argparse.Namespace, engine_life: Awaitable[None] | None = None) -> DrainingServer:
    """engine_life: done when the engine is dead for good; by default that of `app.state.engine_client`."""
    life = died(app.state.engine_client) if engine_life is None else engine_life
    state = app.state
    return DrainingServer(http_config(app, args), life, state.in_flight, args.shutdown_timeout, state.connections)


def http_config(app: FastAPI, args: argparse.Namespace) -> uvicorn.Config:
    """Its `load` reads the files of TLS."""
    app.state.connections.fit()
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol.with_bounds(args.max_header_bytes, args.body_timeout, app.state.connections),
        ws="none",
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        server_header=False,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
    )
    use_record_format("uvicorn")
    hide_queries()
    return config


class DrainingServer(uvicorn.Server):
    """Drains what is in flight before it stops to listen, so that /health can say so meanwhile."""

    def __init__(
        self,
        config: uvicorn.Config,
        engine_life: Awaitable[None],
        in_flight: InFlight,
        shutdown_timeout: float,
        connections: Connections,
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._acceptor = self._make_acceptor() if config.is_ssl else None
        self._engine_life = engine_life
        self._in_flight = in_flight
        self._shutdown_timeout = shutdown_timeout
        self._engine_died = False
        self._draining: asyncio.Task[None] | None = None

    def _make_acceptor(self, before: Callable[[], Awaitable[None]] | None = None) -> Acceptor:
        """The event loop's own way to accept is faster, but neither counts handshakes nor takes turns."""
        config = self.config
        if not config.loaded:
            config.load()

        def make_protocol() -> BoundedHttpProtocol:
            protocol: Any = config.http_protocol_class
            made: BoundedHttpProtocol = protocol(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        return Acceptor(make_protocol, self._connections, config.ssl, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is None:
            await super().startup(sockets)
            return
        await super().startup(sockets=[])
        for listener in sockets or ():
            listener.listen(self.config.backlog)
            self._acceptor.start(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is not None:
            await self._acceptor.stop()
        await super().shutdown(sockets)

    async def run_until_stopped(self, sock: socket.socket) -> int:
        """The exit status. Raises what the engine's start failed with."""
        life = asyncio.ensure_future(self._engine_life)
        watcher = asyncio.create_task(self._watch(life))
        try:
            await self.serve(sockets=[sock])
        finally:
            watcher.cancel()
            life.cancel()
            await asyncio.wait((life,))
        if not life.cancelled():
            life.result()
        return 1 if self._engine_died else 0

    def stop(self, seconds: float) -> None:
        """Begin to stop, giving what runs `seconds`. A second call stops at once."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain(seconds))
        else:
            self.hurry()

    def begin_to_stop(self) -> None:
        """With the time that the options give; where it has begun, that goes on."""
        if self._draining is None:
            self.stop(self._shutdown_timeout)

    def hurry(self) -> None:
        """While it stops: give what runs no more time."""
        self._in_flight.cancel_all()
        self.force_exit = True

    async def _drain(self, seconds: float) -> None:
        logger.info("stopping: %d requests are running, and have %g seconds", len(self._in_flight), seconds)
        await self._in_flight.drain(seconds)
        self.should_exit = True

    async def _watch(self, engine_life: asyncio.Future[None]) -> None:
        await asyncio.wait((engine_life,))
        failed_to_start = not engine_life.cancelled() and engine_life.exception() is not None
        if failed_to_start or not envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            self._engine_died = True
            self.stop(_LAST_WORDS_SECONDS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals begin to drain. Outside the main thread, whoever runs the server has them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop, self._shutdown_timeout)
        if heeds_hangup():
            loop.add_signal_handler(signal.SIGHUP, self.begin_to_stop)
        try:
            yield
        finally:
            for number in (*SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
