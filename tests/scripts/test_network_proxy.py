"""The network stand-in: what it adds, what it leaves alone, what it does when told."""

from __future__ import annotations

import contextlib
import hashlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from scripts.network_lane import MIN_RTO_S, SEGMENT, Lane, Network
from scripts.network_proxy import NetworkProxy, split_address
from tests.support import Child, free_ports, wait_until


class Echo:
    """A server that sends back what it gets, until the end of each connection."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = self.listener.accept()
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.open.append(made)
                threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := made.recv(1 << 16):
                made.sendall(data)
            made.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for made in (self.listener, *self.open):
            made.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def connect(proxy: NetworkProxy) -> socket.socket:
    made = socket.create_connection(proxy.address, timeout=20)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def receive(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        data = sock.recv(count - len(got))
        assert data, f"ended after {len(got)} of {count} bytes"
        got += data
    return got


def round_trip(sock: socket.socket, message: bytes = b"x") -> float:
    began = time.monotonic()
    sock.sendall(message)
    assert receive(sock, len(message)) == message
    return time.monotonic() - began


# The model, without sockets and without time.


def lane(most: int = 1 << 30) -> Lane:
    return Lane(Random(1), most)


def through(lane: Lane, network: Network, pieces: list[bytes]) -> list[tuple[float, bytes]]:
    """What comes out, and when, of pieces that go in a millisecond apart."""
    for index, piece in enumerate(pieces):
        lane.take(piece, network, index * 1e-3)
    out = []
    while (piece := lane.due(math.inf)) is not None:
        out.append((lane.next_at, bytes(piece)))
        lane.sent(len(piece))
    return out


def test_delay_and_jitter_stay_within_their_bounds_and_in_order() -> None:
    pieces = [bytes([index % 256]) for index in range(2000)]
    out = through(lane(), Network(0.04, 0.01), pieces)
    assert [piece for _, piece in out] == pieces
    times = [at for at, _ in out]
    assert times == sorted(times)
    waits = [at - index * 1e-3 for index, at in enumerate(times)]
    assert min(waits) >= 0.03 and max(waits) <= 0.05
    assert max(waits) - min(waits) > 0.01  # it does vary


def test_no_delay_is_below_zero() -> None:
    out = through(lane(), Network(0.0, 0.01), [b"a"] * 500)
    assert all(at >= index * 1e-3 for index, (at, _) in enumerate(out))


def test_a_lost_segment_holds_up_all_behind_it_for_one_retransmission_time() -> None:
    sent = Random(7).randbytes(400 * SEGMENT)
    made = lane()
    out = through(made, Network(0.01, 0.0, 0.02), [sent])
    assert b"".join(piece for _, piece in out) == sent
    assert 1 <= made.stalls <= 40
    first_stalled = next(index for index, (at, _) in enumerate(out) if at > 0.01)
    assert all(at == pytest.approx(0.01) for at, _ in out[:first_stalled])
    assert all(at >= 0.01 + MIN_RTO_S - 1e-9 for at, _ in out[first_stalled:])


def test_losses_are_as_many_as_asked_for() -> None:
    made = lane()
    count = 20_000
    for _ in range(count):
        made.take(b"x" * 100, Network(loss=0.05), 0.0)
    # Four standard deviations of a binomial distribution.
    assert abs(made.stalls - 0.05 * count) < 4 * math.sqrt(0.05 * 0.95 * count)


def test_what_waits_is_bounded_and_the_end_comes_last() -> None:
    made = lane(most=1000)
    made.take(b"a" * 600, Network(0.5), 0.0)
    assert made.room == 400 and made.due(0.49) is None
    made.take(b"", Network(0.0), 0.0)
    assert made.room == 0 and not made.finished
    assert bytes(made.due(0.5) or b"") == b"a" * 600
    made.sent(100)
    assert bytes(made.due(0.5) or b"") == b"a" * 500
    made.sent(500)
    assert made.due(0.5) == b"" and made.waiting == 0
    made.sent(0)
    assert made.finished and made.forwarded == 600


@pytest.mark.parametrize(
    "figures", [(-0.1, 0.0, 0.0), (math.nan, 0.0, 0.0), (0.0, 61.0, 0.0), (0.0, 0.0, 1.0)]
)
def test_figures_of_no_network_are_refused(figures: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        Network(*figures)


# Real sockets.


def test_each_way_takes_at_least_the_delay(echo: Echo) -> None:
    with NetworkProxy(echo.address, delay_s=0.05) as proxy, connect(proxy) as sock:
        assert min(round_trip(sock) for _ in range(5)) >= 0.1
        proxy.shape(delay_s=0.1)
        assert round_trip(sock) >= 0.2
        proxy.shape()
        # Lower bounds alone would be met by a proxy that keeps adding.
        assert min(round_trip(sock) for _ in range(20)) < 0.1


def test_jitter_varies_the_delay_and_keeps_the_order(echo: Echo) -> None:
    made = NetworkProxy(echo.address, delay_s=0.02, jitter_s=0.02, seed=3)
    with made as proxy, connect(proxy) as sock:
        taken = [round_trip(sock) for _ in range(20)]
        assert max(taken) - min(taken) > 0.01
        numbers = b"".join(index.to_bytes(4, "big") for index in range(2000))
        for at in range(0, len(numbers), 40):
            sock.sendall(numbers[at : at + 40])
        assert receive(sock, len(numbers)) == numbers


def test_a_loss_stalls_the_message(echo: Echo) -> None:
    with NetworkProxy(echo.address, loss=0.999, seed=1) as proxy, connect(proxy) as sock:
        # Lost both ways, and retransmissions too: no less than one timeout each way.
        sock.sendall(b"x")
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert proxy.traffic().stalls >= 1


def test_fifty_megabytes_both_ways_come_whole(echo: Echo) -> None:
    size, seed = 50_000_000, Random(11)
    block = seed.randbytes(1_000_000)
    sent, got = hashlib.sha256(), hashlib.sha256()
    with NetworkProxy(echo.address, delay_s=0.002, jitter_s=0.001) as proxy:
        with connect(proxy) as sock:

            def send() -> None:
                for index in range(size // len(block)):
                    piece = block[index:] + block[:index]
                    sent.update(piece)
                    sock.sendall(piece)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            count = 0
            while data := sock.recv(1 << 18):
                got.update(data)
                count += len(data)
            sender.join(20)
        assert count == size and got.digest() == sent.digest()
        traffic = proxy.traffic()
    assert (traffic.up, traffic.down) == (size, size)


def test_a_source_is_held_back_when_the_target_does_not_read() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        NetworkProxy(server.getsockname()) as proxy,
        connect(proxy) as sock,
    ):
        made, _ = server.accept()
        sock.setblocking(False)
        written = 0
        block = b"x" * (1 << 20)
        last = time.monotonic()
        # The proxy's 8 MiB and the kernels' buffers fill, then nothing more goes in.
        while time.monotonic() - last < 0.5 and written < 200 << 20:
            try:
                written += sock.send(block)
                last = time.monotonic()
            except BlockingIOError:
                time.sleep(0.005)
        assert 8 << 20 <= written < 100 << 20
        count = 0
        made.settimeout(20)
        while count < written:
            count += len(made.recv(1 << 20))
        assert count == written
        made.close()


def test_a_cut_stops_bytes_and_keeps_the_connection(echo: Echo) -> None:
    with NetworkProxy(echo.address) as proxy, connect(proxy) as sock:
        round_trip(sock)
        proxy.cut()
        before = proxy.traffic()
        sock.sendall(b"during")
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        with socket.create_connection(proxy.address, timeout=20) as late:
            late.sendall(b"late")
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.recv(1)
            assert proxy.traffic() == before  # the new one has not come through either
            proxy.heal()
            late.settimeout(20)
            assert receive(late, 4) == b"late"
        sock.settimeout(20)
        assert receive(sock, 6) == b"during"


def test_a_cut_costs_no_processor_time(echo: Echo) -> None:
    with NetworkProxy(echo.address) as proxy, connect(proxy) as sock:
        round_trip(sock)
        proxy.cut()
        sock.sendall(b"x" * 1000)
        with socket.create_connection(proxy.address, timeout=20):
            began, used = time.monotonic(), time.process_time()
            threading.Event().wait(0.5)
            assert time.process_time() - used < 0.5 * (time.monotonic() - began)


def test_a_reset_reaches_both_ends_and_new_connections_work(echo: Echo) -> None:
    with NetworkProxy(echo.address) as proxy, connect(proxy) as sock:
        round_trip(sock)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with connect(proxy) as again:
            round_trip(again)
            assert proxy.traffic().open == 1


def test_refused_until_healed_on_the_same_port(echo: Echo) -> None:
    with NetworkProxy(echo.address) as proxy, connect(proxy) as sock:
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(proxy.address, timeout=20)
            proxy.refuse()  # once more changes nothing
        proxy.heal()
        with connect(proxy) as again:
            round_trip(again)


def test_a_target_that_is_not_there_resets() -> None:
    with NetworkProxy(("127.0.0.1", free_ports(1)[0])) as proxy:
        with contextlib.suppress(ConnectionResetError), connect(proxy) as sock:
            assert sock.recv(1) != b""  # never an end that looks regular
            pytest.fail("something answered")
        wait_until(lambda: proxy.traffic().open == 0, "the connection to be gone")


def test_an_end_of_one_way_leaves_the_other_open(echo: Echo) -> None:
    with NetworkProxy(echo.address, delay_s=0.05) as proxy, connect(proxy) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 10) == b"last words"
        assert sock.recv(1) == b""
        wait_until(lambda: proxy.traffic().open == 0, "the connection to be gone")


@pytest.mark.parametrize(
    "act",
    [lambda proxy: proxy.cut(), lambda proxy: proxy.refuse(), lambda proxy: proxy.heal()],
    ids=["cut", "refused", "open"],
)
def test_closing_frees_the_port(echo: Echo, act: Callable[[NetworkProxy], None]) -> None:
    proxy = NetworkProxy(echo.address)
    with connect(proxy):
        act(proxy)
        proxy.close()
        proxy.close()
    socket.create_server(proxy.address).close()
    with pytest.raises(RuntimeError):
        proxy.cut()


@pytest.mark.parametrize("text", ["localhost", ":80", "a:b", "a:0", "a:70000", "a:٨٠"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text)


def test_addresses() -> None:
    assert split_address("robot.local:8080") == ("robot.local", 8080)
    assert split_address("[::1]:80") == ("::1", 80)


def test_the_program_forwards_and_does_as_told(echo: Echo, program: Callable[..., Child]) -> None:
    port = free_ports(1)[0]
    child = program(
        "scripts/network_proxy.py",
        *("--listen", str(port), "--to", f"127.0.0.1:{echo.address[1]}", "--delay-ms", "20"),
    )
    child.wait_for("→")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        assert round_trip(sock) >= 0.04
        child.tell("nonsense")
        child.wait_for("not a command")
        child.tell("reset")
        child.wait_for("reset: ")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert child.stop() == 0
    bad = program("scripts/network_proxy.py", "--to", "nowhere")
    assert bad.end() == 2
    assert "HOST:PORT" in bad.text and "Traceback" not in bad.text
