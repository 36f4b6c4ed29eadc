"""Who may talk to a server: TLS, tokens and certificates on gRPC, CURVE keys on ZeroMQ."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from serving.engine import Engine, EngineOptions
from serving.link import LinkLost
from serving.messages import ServingError
from serving.packed import Note, encode
from serving.transports.grpc_link import GrpcLink
from serving.transports.grpc_server import GrpcServer
from serving.transports.security import (
    ZAP_ADDRESS,
    AuthError,
    ClientKeys,
    Door,
    ServerKeys,
    Tls,
    bearer_matches,
    is_loopback,
    make_keys,
    read_token,
    server_credentials,
)
from serving.transports.zmq_common import Envelope
from serving.transports.zmq_link import ZmqLink
from serving.transports.zmq_server import ZmqServer
from tests.serving.wires import WAIT_S, Servers, begun, exchange, instructions, serving
from tests.support import wait_until

TOKEN = "correct-horse-battery-staple"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
needs_curve = pytest.mark.skipif(not zmq.has("curve"), reason="needs libzmq with CURVE")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ServingError) as caught:
        call()
    assert caught.value.kind == "not_allowed", caught.value
    return str(caught.value)


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificate(folder: Path, name: str) -> None:
    """`name.key` and `name.pem`, signed by `name-ca.pem`, good for localhost and 127.0.0.1."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = (f"{name}-ca.key", f"{name}-ca.pem")
    openssl(
        folder,
        *("req", "-x509", *key, "-keyout", authority[0], "-out", authority[1]),
        *("-subj", f"/CN={name}-ca", "-days", "2"),
    )
    openssl(
        folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
    )
    (folder / f"{name}.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", authority[1], "-CAkey", authority[0]),
        *("-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
    )
    (folder / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "robot"):
        certificate(folder, name)
    return folder


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(EngineOptions(inference_latency_s=0.0, obs_queue_timeout_s=0.3))
    yield made
    made.close()


@pytest.fixture
def grpc_server(engine: Engine) -> Iterator[Callable[..., GrpcServer]]:
    servers: list[GrpcServer] = []

    def start(token: str | None = None, credentials: object = None) -> GrpcServer:
        options = EngineOptions(inference_latency_s=0.0, obs_queue_timeout_s=0.3)
        made = GrpcServer(engine, options, "127.0.0.1", 0, token=token, credentials=credentials)
        servers.append(made)
        return made

    yield start
    for made in servers:
        made.close(0.1)


def works(link: GrpcLink | ZmqLink) -> None:
    begun(link)
    exchange(link, 1)
    link.close()


@needs_openssl
def test_tls_and_a_token(certificates: Path, grpc_server: Callable[..., GrpcServer]) -> None:
    credentials = server_credentials(certificates / "server.pem", certificates / "server.key", None)
    server = grpc_server(TOKEN, credentials)
    where = f"127.0.0.1:{server.port}"
    trusted = Tls(certificates / "server-ca.pem")
    works(GrpcLink(where, token=TOKEN, tls=trusted))
    for token in (None, "wrong-horse-battery-staple", TOKEN[:-1]):
        words = refused(
            lambda token=token: GrpcLink(where, token=token, tls=trusted).begin(
                instructions(), WAIT_S
            )
        )
        assert "token" in words
        assert TOKEN not in words
    assert server.refusals.snapshot()["grpc"]["not_allowed"] == 3
    stranger = GrpcLink(where, token=TOKEN, tls=Tls(certificates / "robot-ca.pem"))
    assert "TLS" in refused(lambda: stranger.begin(instructions(), WAIT_S))
    with pytest.raises((LinkLost, ServingError)):
        GrpcLink(where).begin(instructions(), WAIT_S)


@needs_openssl
def test_a_client_may_be_asked_for_a_certificate(
    certificates: Path, grpc_server: Callable[..., GrpcServer]
) -> None:
    server = grpc_server(
        None,
        server_credentials(
            certificates / "server.pem",
            certificates / "server.key",
            certificates / "robot-ca.pem",
        ),
    )
    where, ca = f"127.0.0.1:{server.port}", certificates / "server-ca.pem"
    works(GrpcLink(where, tls=Tls(ca, certificates / "robot.pem", certificates / "robot.key")))
    for tls in (Tls(ca), Tls(ca, certificates / "server.pem", certificates / "server.key")):
        with pytest.raises((LinkLost, ServingError)):
            GrpcLink(where, tls=tls).begin(instructions(), 5.0)


def test_a_token_without_tls(grpc_server: Callable[..., GrpcServer]) -> None:
    server = grpc_server(TOKEN)
    works(GrpcLink(f"127.0.0.1:{server.port}", token=TOKEN))
    link = GrpcLink(f"127.0.0.1:{server.port}")
    assert "token" in refused(lambda: link.begin(instructions(), WAIT_S))
    assert "TLS" in refused(lambda: GrpcLink("192.0.2.1:8080", token=TOKEN))
    GrpcLink("192.0.2.1:8080", token=TOKEN, token_in_the_clear=True).close()


@pytest.mark.parametrize("option", ["--tls_cert", "--tls_key", "--tls_client_ca"])
def test_a_file_of_the_server_that_is_not_there_is_one_line(tmp_path: Path, option: str) -> None:
    (tmp_path / "good.pem").write_text("-----BEGIN CERTIFICATE-----")
    files = dict.fromkeys(("--tls_cert", "--tls_key", "--tls_client_ca"), tmp_path / "good.pem")
    files[option] = tmp_path / "nowhere.pem"
    with pytest.raises(AuthError, match=rf"{option} \S+nowhere\.pem: cannot be read") as refused:
        server_credentials(*files.values())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ["", "short", "two words of some length", "ä" * 30, "x" * 5000, "\x00" * 30]
)
def test_a_token_that_cannot_serve_as_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(AuthError, match="token"):
        read_token(tmp_path / "token")
    with pytest.raises(AuthError, match="cannot be read"):
        read_token(tmp_path / "no such file")


def test_a_token_is_read_and_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o644)
    assert read_token(path) == TOKEN
    assert "chmod 600" in caplog.text
    assert bearer_matches(TOKEN, f"Bearer {TOKEN}")
    for given in (None, "", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN} ", b"\xff", "Bearer ü"):
        assert not bearer_matches(TOKEN, given)


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("hello")
    with pytest.raises(AuthError, match="PEM"):
        server_credentials(tmp_path / "cert.pem", tmp_path / "cert.pem", None)
    with pytest.raises(AuthError, match="belong together"):
        Tls(cert=tmp_path / "cert.pem").credentials()
    with pytest.raises(AuthError, match="cannot be read"):
        ServerKeys.load(tmp_path)
    (tmp_path / "server.key_secret").write_text("hello")
    with pytest.raises(AuthError, match="not a key file"):
        ServerKeys.load(tmp_path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.0.2.1", "no.such.host.invalid")),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@needs_curve
def test_curve_keys(engine: Engine, tmp_path: Path) -> None:
    server_folder, robot = make_keys(tmp_path / "keys")
    server = ZmqServer(engine, "127.0.0.1", 0, keys=ServerKeys.load(server_folder))
    where = f"127.0.0.1:{server.port}"
    works(ZmqLink(where, keys=ClientKeys.load(robot)))

    _, stranger = make_keys(tmp_path / "other keys")
    (stranger / "server.key").write_bytes((robot / "server.key").read_bytes())
    link = ZmqLink(where, keys=ClientKeys.load(stranger))
    assert "key" in refused(lambda: link.begin(instructions(), WAIT_S))
    assert server.refusals.snapshot()["zmq"]["not_allowed"] >= 1
    # One without keys, and one that takes another server for this one.
    for keys in (None, ClientKeys.load(make_keys(tmp_path / "third")[1])):
        with pytest.raises((LinkLost, ServingError)):
            ZmqLink(where, keys=keys).begin(instructions(), 3.0)

    # A robot that is added while the server runs.
    _, second = make_keys(tmp_path / "keys")
    assert second.name == "robot2"
    works_in_the_end(where, ClientKeys.load(second))
    server.close()


@needs_curve
def test_a_refusal_is_counted_before_the_client_hears_of_it(tmp_path: Path) -> None:
    server_folder, _ = make_keys(tmp_path / "keys")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    counted: list[tuple[str, int]] = []
    door = Door(
        context,
        ServerKeys.load(server_folder),
        lambda who: counted.append((who, asker.poll(50))),
    )
    asker = context.socket(zmq.REQ)
    try:
        asker.connect(ZAP_ADDRESS)
        key = b"k" * 32
        asker.send_multipart([b"1.0", b"1", b"dualrate", b"10.0.0.9", b"", b"CURVE", key])
        door.answer(0.0)
        assert counted == [("10.0.0.9", 0)]  # nothing had been said by then
        assert asker.recv_multipart()[2] == b"400"
    finally:
        door.close()
        context.destroy(0)


def works_in_the_end(where: str, keys: ClientKeys) -> None:
    """The folder of keys is read again at most once a second."""
    failed: list[Exception] = []

    def attempt() -> bool:
        try:
            works(ZmqLink(where, keys=keys))
        except ServingError as error:
            failed.append(error)
            return False
        return True

    wait_until(attempt, f"the new robot to be let in; {failed}", WAIT_S)


class OneOdd:
    """A client's keys, with which one of a link's two connections is set up otherwise."""

    def __init__(self, keys: ClientKeys, which: int, odd: Callable[[zmq.Socket[bytes]], None]):
        self._keys, self._which, self._odd = keys, which, odd
        self._made = 0

    def apply(self, made: zmq.Socket[bytes]) -> None:
        self._keys.apply(made)
        if self._made == self._which:
            self._odd(made)
        self._made += 1


@needs_curve
@pytest.mark.parametrize("which", [0, 1])
def test_a_link_is_refused_where_one_of_its_connections_is(
    engine: Engine, tmp_path: Path, which: int
) -> None:
    """As when a robot's key is added between the two: ZeroMQ does not try the refused one again."""
    server_folder, robot = make_keys(tmp_path / "keys")
    stranger = ClientKeys.load(make_keys(tmp_path / "other keys")[1])
    known = ClientKeys.load(robot)
    server = ZmqServer(engine, "127.0.0.1", 0, keys=ServerKeys.load(server_folder))

    def forget(made: zmq.Socket[bytes]) -> None:
        made.curve_publickey, made.curve_secretkey = stranger.public, stranger.secret

    link = ZmqLink(f"127.0.0.1:{server.port}", keys=OneOdd(known, which, forget))
    with contextlib.closing(server), contextlib.closing(link):
        assert "key" in refused(lambda: link.begin(instructions(), WAIT_S))
        works(link)  # the next attempt's connections have one key


@needs_curve
@pytest.mark.parametrize("which", [0, 1])
def test_a_link_has_not_begun_before_both_its_connections_are_there(
    engine: Engine, tmp_path: Path, which: int
) -> None:
    server_folder, robot = make_keys(tmp_path)
    server = ZmqServer(engine, "127.0.0.1", 0, keys=ServerKeys.load(server_folder))
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def lead_astray(made: zmq.Socket[bytes]) -> None:
            made.setsockopt_string(zmq.SOCKS_PROXY, f"127.0.0.1:{silent.getsockname()[1]}")

        keys = OneOdd(ClientKeys.load(robot), which, lead_astray)
        link = ZmqLink(f"127.0.0.1:{server.port}", keys=keys)
        with contextlib.closing(server), contextlib.closing(link):
            with pytest.raises(LinkLost, match="in time"):
                link.begin(instructions(), 1.5)
            works(link)


@needs_curve
def test_a_client_with_keys_trusts_no_server_without(engine: Engine, tmp_path: Path) -> None:
    server = ZmqServer(engine, "127.0.0.1", 0)
    link = ZmqLink(f"127.0.0.1:{server.port}", keys=ClientKeys.load(make_keys(tmp_path)[1]))
    with pytest.raises((LinkLost, ServingError)):
        link.begin(instructions(), 3.0)
    works(ZmqLink(f"127.0.0.1:{server.port}"))
    server.close()


@needs_curve
def test_keys_are_made_for_their_owner_only_and_never_written_over(tmp_path: Path) -> None:
    server, robot = make_keys(tmp_path)
    secrets = {path: path.read_bytes() for path in tmp_path.rglob("*.key_secret")}
    assert set(secrets) == {server / "server.key_secret", robot / "client.key_secret"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets)
    assert make_keys(tmp_path) == (server, tmp_path / "robot2")
    assert all(path.read_bytes() == content for path, content in secrets.items())
    assert len(ServerKeys.load(server).allowed()) == 2
    (server / "clients" / "broken.key").write_text("nonsense")
    assert len(ServerKeys.load(server).allowed()) == 2


# Strangers without any manners -------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with serving() as made:
        yield made


def test_garbage_on_the_zmq_socket(servers: Servers) -> None:
    before = servers.refused("zmq", "bad_message")
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.connect(f"tcp://127.0.0.1:{servers.zmq.port}")
    envelope = Envelope(b"x" * 16, 1).pack()
    garbage: list[list[bytes]] = [
        [b""],
        [b"hello"],
        [b"hello", b"world"],
        [envelope],
        [envelope, b"\x80\x05cos\nsystem\n"],
        [envelope, b"\xdd\xff\xff\xff\xff"],
        [envelope, *[b"x"] * 500],
        [envelope[:-1], *[bytes(frame) for frame in encode(Note("ready"))]],
    ]
    for frames in garbage:
        client.send_multipart(frames)
    wait_until(
        lambda: servers.refused("zmq", "bad_message") == before + len(garbage), "the refusals"
    )
    client.send_multipart([envelope, *encode(Note("ping"))])
    wait_until(lambda: servers.refused("zmq", "no_session") >= 1, "the refusal of a stranger")
    client.close(0)
    works(ZmqLink(f"127.0.0.1:{servers.zmq.port}"))


# ZMTP 3.0: signature, version, NULL mechanism, not a server, filler; then the READY command.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


@pytest.mark.parametrize(
    "then",
    [
        b"",
        b"\x01\x18" + Envelope(b"y" * 16, 1).pack(),  # the first of several frames
        b"\x02" + struct.pack(">Q", 1 << 20) + bytes(1000),  # part of a long frame
        b"\x02" + struct.pack(">Q", 1 << 62),  # a frame that nobody may send
        b"\xff" * 64,
    ],
    ids=["nothing", "half a message", "half a frame", "a huge frame", "garbage"],
)
def test_a_client_that_dies_in_the_middle_of_a_message(servers: Servers, then: bytes) -> None:
    with socket.create_connection(("127.0.0.1", servers.zmq.port), WAIT_S) as raw:
        raw.settimeout(WAIT_S)
        raw.sendall(GREETING)
        assert raw.recv(10).startswith(b"\xff")  # it is listened to
        raw.sendall(READY + then)
    works(ZmqLink(f"127.0.0.1:{servers.zmq.port}"))


def test_garbage_on_the_grpc_port(servers: Servers) -> None:
    for said in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", servers.grpc.port), WAIT_S) as raw:
            raw.sendall(said)
    works(GrpcLink(f"127.0.0.1:{servers.grpc.port}"))
