"""A TCP proxy that behaves like a bad network: delay, jitter, loss, cuts, resets.

python scripts/network_proxy.py --listen 9000 --to localhost:8080 --delay-ms 40 --jitter-ms 10

Type cut, heal, reset or refuse and Enter while it runs. Tests use the class `NetworkProxy`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

from common import endpoints
from common.stopping import stopping
from scripts.tcp_proxy import NetworkProxy, Traffic

__all__ = ["NetworkProxy", "ProxyOptions", "Traffic", "main", "split_address"]


@dataclass(frozen=True)
class ProxyOptions:
    """Forward TCP connections as a bad network would."""

    to: str
    """HOST:PORT of the server behind."""
    listen: int = 9000
    """Port that clients connect to instead."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    delay_ms: float = 0.0
    """One-way delay."""
    jitter_ms: float = 0.0
    """The delay varies by up to so much both ways."""
    loss: float = 0.0
    """Share of segments that are lost: each stalls its direction for 200 ms or more."""
    seed: int = 0
    """Of jitter and losses."""
    duration: float | None = None
    """Stop after so many seconds; without it, run until Ctrl+C."""


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT; ValueError (one line) otherwise."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not (colon and host and port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"{text!r} is not HOST:PORT, e.g. localhost:{endpoints.GRPC.port}")
    return host, int(port)


def _take_commands(proxy: NetworkProxy) -> None:
    """Do what is typed."""
    known = {"cut": proxy.cut, "heal": proxy.heal, "reset": proxy.reset, "refuse": proxy.refuse}
    for line in sys.stdin:
        command = known.get(line.strip())
        if command is None:
            print(f"not a command; there are {', '.join(known)}")
            continue
        with contextlib.suppress(RuntimeError):
            command()
            print(f"{line.strip()}: {proxy.traffic()}", flush=True)


def main() -> int:
    """Forward until asked to stop; the exit code."""
    options = cli.parse(ProxyOptions)
    try:
        proxy = NetworkProxy(
            split_address(options.to),
            options.delay_ms / 1e3,
            options.jitter_ms / 1e3,
            options.loss,
            options.seed,
            listen=(options.host, options.listen),
        )
    except ValueError as error:
        cli.fail(str(error))
    except OSError as error:
        cli.fail(f"{options.host}:{options.listen} → {options.to}: {error.strerror or error}")
    with stopping(options.duration) as stop, proxy:
        print(f"{proxy.address[0]}:{proxy.port} → {options.to}", flush=True)
        threading.Thread(target=_take_commands, args=(proxy,), daemon=True).start()
        stop.wait()
        print(proxy.traffic())
    return 0


if __name__ == "__main__":
    sys.exit(main())
