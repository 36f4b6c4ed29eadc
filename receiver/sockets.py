"""Opens the sockets that others send to, and says in one line why one cannot be."""

from __future__ import annotations

import logging
import socket

import zmq

from common import endpoints

__all__ = ["InputError", "bind_or_fail", "udp_socket"]

logger = logging.getLogger(__name__)

_SO_RCVBUFFORCE = 33  # Linux: as root, beyond the system's limit (asm-generic/socket.h)


class InputError(OSError):
    """A socket that cannot be opened; the message is one line."""


def bind_or_fail(sock: zmq.Socket[bytes], bind: str, port: int, what: str) -> None:
    """Bind a TCP socket; InputError with one line when that is not possible."""
    sock.setsockopt(zmq.IPV6, int(":" in bind))
    try:
        sock.bind(endpoints.address(bind, port))
    except zmq.ZMQError as error:
        sock.close(linger=0)
        raise InputError(f"tcp {bind}:{port} for {what}: {error.strerror}") from None


def udp_socket(bind: str, port: int, buffer_bytes: int, what: str) -> socket.socket:
    """A UDP socket that holds `buffer_bytes` while nobody reads; InputError for a port in use.

    A system that allows less is said in one line, with how to change that: it loses datagrams.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_DGRAM)
    granted = _buffer(sock, buffer_bytes)
    if granted < buffer_bytes // 2:
        logger.warning(
            "udp %d for %s: the system buffers %d kB instead of %d, a stall may lose datagrams: "
            "sysctl -w net.core.rmem_max=%d",
            port,
            what,
            granted // 1000,
            buffer_bytes // 1000,
            buffer_bytes,
        )
    try:
        sock.bind(("" if bind == "*" else bind, port))
    except OSError as error:
        sock.close()
        raise InputError(f"udp {bind}:{port} for {what}: {error.strerror}") from None
    return sock


def _buffer(sock: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer; what was granted. The system cuts what it does not allow."""
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, wanted)
            break
        except OSError:
            continue
    # Linux doubles what is asked for, as room for its own bookkeeping (socket(7)).
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
