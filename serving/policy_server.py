"""Serves policies to robots and simulators over a network.

    python serving/policy_server.py --host 0.0.0.0 --port 8080

Over gRPC it is what LeRobot's own clients expect; this project's clients use the same or ZeroMQ.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("serving")

import zmq

from common.heap import keep_freed_memory
from common.program import Every, OptionError, run
from serving.engine import Engine
from serving.messages import Instructions, ServingError
from serving.server_options import ServerOptions
from serving.transports.refusals import Refusals
from serving.transports.security import (
    AuthError,
    ServerKeys,
    is_loopback,
    make_keys,
    read_token,
    server_credentials,
)
from serving.transports.zmq_server import ZmqServer

__all__ = ["main", "serve"]

logger = logging.getLogger("serving.server")

_METRICS_EVERY_S = 2.0


def serve(options: ServerOptions, stop: threading.Event) -> None:
    """Serve until `stop`; raises ProgramError when it cannot start."""
    if options.make_keys is not None:
        _make_keys(options.make_keys)
        return
    _warn(options)
    keep_freed_memory()
    with contextlib.closing(Engine(options.engine())) as engine:
        refusals = Refusals()
        with _listening(options, engine, refusals):
            _preload(options, engine, stop)
            _watch(options, engine, refusals, stop)


def _make_keys(folder: Path) -> None:
    try:
        server, client = make_keys(folder)
    except AuthError as error:
        raise OptionError(str(error)) from None
    logger.info("%s: stays here, for the server's --curve_keys", server)
    logger.info("%s: move it to the robot's computer, for its client's --curve_keys", client)


def _warn(options: ServerOptions) -> None:
    """Say loudly what anyone on the network could do."""
    if is_loopback(options.host):
        return
    gaps = []
    if options.grpc and options.tls_cert is None:
        gaps.append(f"gRPC on port {options.port} is not encrypted (--tls_cert, --tls_key)")
    if options.grpc and options.token_file is None and options.tls_client_ca is None:
        gaps.append(f"gRPC on port {options.port} asks nobody who they are (--token_file)")
    if options.zmq_port and options.curve_keys is None:
        gaps.append(
            f"ZeroMQ on port {options.zmq_port} is neither encrypted nor does it ask who anyone "
            "is (--curve_keys, or --zmq_port 0)"
        )
    for gap in gaps:
        logger.warning(
            "[SERVER] WARNING: listening on %s, beyond this computer: %s", options.host, gap
        )
    if gaps and not options.policy_roots:
        logger.warning(
            "[SERVER] WARNING: whoever reaches these ports can have any policy on this computer "
            "loaded (--policy_roots)"
        )


@contextlib.contextmanager
def _listening(options: ServerOptions, engine: Engine, refusals: Refusals) -> Iterator[None]:
    with contextlib.ExitStack() as servers:
        try:
            if options.zmq_port:
                keys = None if options.curve_keys is None else ServerKeys.load(options.curve_keys)
                over_zmq = ZmqServer(
                    engine, options.host, options.zmq_port, refusals=refusals, keys=keys
                )
                servers.callback(over_zmq.close)
                logger.info(
                    "[SERVER] ZeroMQ on %s:%d%s",
                    options.host, over_zmq.port, " with CURVE" if keys else "",
                )  # fmt: skip
            if options.grpc:
                _listen_grpc(options, engine, refusals, servers)
        except AuthError as error:
            raise OptionError(str(error)) from None
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise _in_use(options.zmq_port, "--zmq_port") from None
            raise OptionError(f"--host {options.host}: cannot be used ({error.strerror})") from None
        yield


def _listen_grpc(
    options: ServerOptions, engine: Engine, refusals: Refusals, servers: contextlib.ExitStack
) -> None:
    try:
        from serving.transports.grpc_server import CannotListen, GrpcServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise OptionError("gRPC is not installed: pip install '.[serving]', or --no-grpc") from None
    credentials = None
    if options.tls_cert is not None and options.tls_key is not None:
        credentials = server_credentials(options.tls_cert, options.tls_key, options.tls_client_ca)
    try:
        over_grpc = GrpcServer(
            engine,
            options.engine(),
            options.host,
            options.port,
            refusals=refusals,
            token=None if options.token_file is None else read_token(options.token_file),
            credentials=credentials,
        )
    except CannotListen:
        raise _why_not(options) from None
    servers.callback(over_grpc.close)
    with_what = [word for word, on in (("TLS", credentials), ("token", options.token_file)) if on]
    logger.info(
        "[SERVER] gRPC on %s:%d%s",
        options.host, over_grpc.port, f" with {' and '.join(with_what)}" if with_what else "",
    )  # fmt: skip


def _why_not(options: ServerOptions) -> OptionError:
    """What keeps gRPC from listening, asked by listening there without it."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        socket.create_server((options.host, options.port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _in_use(options.port, "--port")
        return OptionError(f"--host {options.host}: cannot be used ({error.strerror})")
    return OptionError("gRPC takes no such files: do --tls_cert and --tls_key belong together?")


def _in_use(port: int, option: str) -> OptionError:
    return OptionError(f"port {port} is in use: is another one running? {option} picks another")


def _preload(options: ServerOptions, engine: Engine, stop: threading.Event) -> None:
    """Load what was asked for; OptionError where one cannot be loaded."""
    failed: list[OptionError] = []

    def load_all() -> None:
        try:
            for text in options.preload:
                _load(engine, text)
        except OptionError as error:
            failed.append(error)

    loading = threading.Thread(target=load_all, name="preload", daemon=True)
    loading.start()
    while loading.is_alive() and not stop.is_set():
        loading.join(0.1)
    if failed and not stop.is_set():
        raise failed[0]


def _load(engine: Engine, text: str) -> None:
    policy_type, _, place = text.partition(":")
    path, at, device = place.rpartition("@")
    wanted = Instructions(policy_type, path if at else place, device if at else "cpu")
    client = f"preload {text}"
    try:
        engine.ready(client)
        engine.instruct(client, wanted)
    except ServingError as error:
        # Loaded, but made for a robot: it cannot be tried without one.
        if not _is_loaded(engine, wanted):
            raise OptionError(f"--preload {text}: {error}") from None
    finally:
        engine.forget(client)


def _is_loaded(engine: Engine, wanted: Instructions) -> bool:
    name = wanted.path.rstrip("/").rpartition("/")[2]
    return any(
        policy["loaded"] and title.startswith(f"{wanted.policy_type} ") and name in title
        for title, policy in engine.metrics()["policies"].items()
    )


def _watch(
    options: ServerOptions, engine: Engine, refusals: Refusals, stop: threading.Event
) -> None:
    """Say how things are and write it down, until `stop`."""
    logger.info("[SERVER] ready")
    status, written, rate = Every(), Every(_METRICS_EVERY_S), _Rate()
    while not stop.wait(0.5):
        if status.due():
            metrics = engine.metrics()
            logger.info(_summary(metrics, refusals, rate.of(metrics["total"]["observations"])))
        if options.metrics_json is not None and written.due():
            _write(options.metrics_json, engine, refusals)
    if options.metrics_json is not None:
        _write(options.metrics_json, engine, refusals)
    metrics = engine.metrics()
    logger.info(_summary(metrics, refusals, rate.of(metrics["total"]["observations"])))


class _Rate:
    """How fast a count grows between two looks at it."""

    def __init__(self) -> None:
        self._count, self._at = 0, time.monotonic()

    def of(self, count: int) -> float:
        moment = time.monotonic()
        rate = (count - self._count) / max(moment - self._at, 1e-3)
        self._count, self._at = count, moment
        return rate


def _summary(metrics: dict[str, Any], refusals: Refusals, rate_hz: float) -> str:
    total = metrics["total"]

    def shown(key: str, unit: str) -> str:
        return "-" if total[key] is None else f"{total[key]:.1f}{unit}"

    return " | ".join(
        (
            f"[SERVER] {metrics['sessions']} sessions",
            f"{rate_hz:.1f} requests/s",
            f"batch {shown('batch_mean', '')}",
            f"inference p50 {shown('inference_ms_p50', ' ms')}",
            f"p99 {shown('inference_ms_p99', ' ms')}",
            f"refusals {refusals.total}",
        )
    )


def _write(path: Path, engine: Engine, refusals: Refusals) -> None:
    """Replace the file at once, so that whoever reads it finds all of it."""
    content = json.dumps(engine.metrics() | {"refused": refusals.snapshot()}, indent=1)
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(content)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        logger.warning("--metrics_json %s: cannot be written (%s)", path, error.strerror)


def main() -> int:
    """Run from the command line; the exit code."""
    return run(ServerOptions, serve)


if __name__ == "__main__":
    sys.exit(main())
