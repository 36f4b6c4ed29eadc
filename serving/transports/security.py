"""Who may talk to the server: TLS and a token for gRPC, CURVE keys for ZeroMQ. All off by default.

| transport | encrypted and server proven by | client proven by |
| --- | --- | --- |
| gRPC | a certificate | a bearer token, or a certificate of its own |
| ZeroMQ | the server's CURVE key | the client's CURVE key |
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.utils import z85

__all__ = ["AuthError", "ClientKeys", "Door", "ServerKeys", "Tls", "bearer_matches"]
__all__ += ["is_loopback", "make_keys", "read_token", "server_credentials"]

logger = logging.getLogger("serving.security")

LEAST_TOKEN = 16
MOST_TOKEN = 4096
SERVER, CLIENTS = "server", "clients"
ZAP_ADDRESS = "inproc://zeromq.zap.01"
"""Where libzmq asks who may come in (ZeroMQ RFC 27)."""


class AuthError(Exception):
    """Keys, certificates or a token that cannot be used; one line that says what to do."""


def is_loopback(host: str) -> bool:
    """Whether only programs on the same computer reach this host; unknown names are not."""
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(
        ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found
    )


def read_token(path: Path) -> str:
    """The token in a file's first line; AuthError for one that cannot serve as such."""
    token = _read(path, "--token_file").decode("ascii", "replace").strip()
    if not LEAST_TOKEN <= len(token) <= MOST_TOKEN or not (token.isascii() and token.isprintable()):
        raise AuthError(
            f"{path}: a token is one line of {LEAST_TOKEN} to {MOST_TOKEN} plain characters; "
            "`openssl rand -hex 32` makes one"
        )
    if " " in token:
        raise AuthError(f"{path}: a token has no spaces")
    _warn_if_open(path)
    return token


def bearer_matches(expected: str, given: str | bytes | None) -> bool:
    """Whether an `authorization` value holds the token, found out in constant time."""
    said = given.encode("utf-8", "replace") if isinstance(given, str) else given or b""
    return hmac.compare_digest(said, f"Bearer {expected}".encode())


@dataclass(frozen=True)
class Tls:
    """What a client needs to trust a server over TLS, and to be trusted.

    Attributes:
        ca: PEM of whoever signed the server's certificate; None for the system's.
        cert: PEM of the client's own certificate, where the server asks for one.
        key: PEM of its private key.
        name: the name in the server's certificate, where it is not the host's.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None

    def credentials(self) -> Any:
        """For `grpc.secure_channel`; AuthError where a file cannot be used."""
        import grpc

        if (self.cert is None) != (self.key is None):
            raise AuthError("--tls_cert and --tls_key belong together")
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca is None else _pem(self.ca, "--tls_ca"),
            private_key=None if self.key is None else _pem(self.key, "--tls_key"),
            certificate_chain=None if self.cert is None else _pem(self.cert, "--tls_cert"),
        )


def server_credentials(cert: Path, key: Path, client_ca: Path | None) -> Any:
    """For gRPC's `add_secure_port`; AuthError where a file cannot be used."""
    import grpc

    pair = _pem(key, "--tls_key"), _pem(cert, "--tls_cert")
    _warn_if_open(key)
    return grpc.ssl_server_credentials(
        [pair],
        root_certificates=None if client_ca is None else _pem(client_ca, "--tls_client_ca"),
        require_client_auth=client_ca is not None,
    )


def _pem(path: Path, option: str) -> bytes:
    content = _read(path, option)
    if b"-----BEGIN " not in content:
        raise AuthError(f"{option} {path}: not a PEM file")
    return content


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise AuthError(f"{option} {path}: cannot be read ({error.strerror})") from None


def _warn_if_open(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        logger.warning("%s can be read by other users of this computer: chmod 600 %s", path, path)


# CURVE ------------------------------------------------------------------------------------------
# DIR/server/server.key_secret     the server's own, stays there
# DIR/server/clients/NAME.key      who may come in
# DIR/NAME/client.key_secret       to be copied to the robot's computer, with
# DIR/NAME/server.key              the server's public key


def make_keys(folder: Path, name: str = "robot") -> tuple[Path, Path]:
    """Make the server's keys, where there are none yet, and those of one more client.

    Returns the folders for the server's `--curve_keys` and for the client's. Nothing that is there
    is written over: with `robot` taken, the next client is `robot2`.
    """
    server = folder / SERVER
    try:
        (server / CLIENTS).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (server / "server.key_secret").exists():
            _make_pair(server, SERVER)
        number, client = 1, folder / name
        while client.exists() or (server / CLIENTS / f"{client.name}.key").exists():
            number += 1
            client = folder / f"{name}{number}"
        client.mkdir(mode=0o700)
        _make_pair(client, "client")
        known = server / CLIENTS / f"{client.name}.key"
        known.write_bytes((client / "client.key").read_bytes())
        (client / "server.key").write_bytes((server / "server.key").read_bytes())
    except OSError as error:
        raise AuthError(f"--make_keys {folder}: {error.strerror} ({error.filename})") from None
    return server, client


def _make_pair(folder: Path, name: str) -> None:
    """`name.key` and `name.key_secret`, the latter readable by the owner only from the start."""
    before = os.umask(0o077)
    try:
        zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
        for key in (public, secret):
            if key is not None and len(z85.decode(key)) != 32:
                raise ValueError("not a key")
    except OSError as error:
        raise AuthError(f"{path}: cannot be read ({error.strerror or 'not there'})") from None
    except (ValueError, KeyError, UnicodeDecodeError):
        raise AuthError(f"{path}: not a key file; --make_keys DIR makes them") from None
    return public, secret


def _load_secret(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise AuthError(f"{path}: holds no secret key; --make_keys DIR makes them")
    _warn_if_open(path)
    return public, secret


@dataclass(frozen=True)
class ClientKeys:
    """A client's CURVE keys, and the server's public one (Z85)."""

    public: bytes
    secret: bytes
    server: bytes

    @classmethod
    def load(cls, folder: Path) -> ClientKeys:
        """From a folder with `client.key_secret` and `server.key`."""
        public, secret = _load_secret(folder / "client.key_secret")
        return cls(public, secret, _load(folder / "server.key")[0])

    def apply(self, made: zmq.Socket[bytes]) -> None:
        """To a socket that is to be connected."""
        made.curve_publickey, made.curve_secretkey = self.public, self.secret
        made.curve_serverkey = self.server


@dataclass(frozen=True)
class ServerKeys:
    """The server's CURVE keys (Z85), and the folder of the clients' public ones."""

    public: bytes
    secret: bytes
    clients: Path

    @classmethod
    def load(cls, folder: Path) -> ServerKeys:
        """From a folder with `server.key_secret` and `clients/`; AuthError with what to do."""
        public, secret = _load_secret(folder / "server.key_secret")
        keys = cls(public, secret, folder / CLIENTS)
        if not keys.allowed():
            raise AuthError(f"{keys.clients}: no client's key; --make_keys DIR makes them")
        return keys

    def allowed(self) -> frozenset[bytes]:
        """The clients' public keys as they are in the folder now, 32 bytes each."""
        found = set()
        for path in sorted(self.clients.glob("*.key")):
            try:
                found.add(z85.decode(_load(path)[0]))
            except AuthError as error:
                logger.warning("%s", error)
        return frozenset(found)


class Door:
    """Answers libzmq's question who may come in. Used by one thread, the one of the ROUTER.

    An unknown key makes it read the folder again, at most once a second, so that a robot can be
    added while others work.
    """

    def __init__(
        self, context: zmq.Context[Any], keys: ServerKeys, turned_away: Callable[[str], None]
    ) -> None:
        """Listen in `context`; must exist before the ROUTER is bound.

        `turned_away` is told the address of each client that is refused, before the client is.
        """
        self._keys, self._turned_away = keys, turned_away
        self._allowed = keys.allowed()
        self._read_at = 0.0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ADDRESS)

    def guard(self, made: zmq.Socket[bytes]) -> None:
        """Make a socket that is to be bound ask here."""
        made.curve_server = True
        made.curve_publickey, made.curve_secretkey = self._keys.public, self._keys.secret
        made.zap_domain = b"dualrate"

    def answer(self, moment: float) -> None:
        """Answer one question."""
        # version, request id, domain, address, identity, mechanism, credentials
        frames = self.socket.recv_multipart()
        key = frames[6] if len(frames) == 7 and frames[5] == b"CURVE" else b""
        if key not in self._allowed and moment - self._read_at >= 1.0:
            self._read_at = moment
            self._allowed = self._keys.allowed()
        known = key in self._allowed
        if not known:
            self._turned_away(frames[3].decode("ascii", "replace"))
        status = (b"200", b"OK") if known else (b"400", b"unknown key")
        self.socket.send_multipart([b"1.0", frames[1], *status, key.hex().encode()[:255], b""])

    def close(self) -> None:
        """Stop listening."""
        self.socket.close(0)
