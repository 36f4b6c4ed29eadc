"""Both transports through real sockets: the same promises whatever the wire."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from serving.link import Link, LinkLost
from serving.messages import (
    BadMessage,
    Chunk,
    Instructions,
    Observation,
    Picture,
    ServingError,
)
from serving.transports.zmq_link import ZmqLink
from tests.serving.wires import (
    TRANSPORTS,
    WAIT_S,
    Servers,
    answer_of,
    begun,
    exchange,
    instructions,
    observation,
    serving,
)
from tests.support import Child, free_ports, wait_until


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with serving() as made:
        yield made


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def link(servers: Servers, transport: str) -> Iterator[Link]:
    made = servers.link(transport)
    yield made
    made.close()


def refused(kind: str, call: Callable[[], object]) -> str:
    """What the server says when it refuses, of this kind."""
    with pytest.raises(ServingError) as caught:
        call()
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


def test_observations_are_answered(link: Link) -> None:
    begun(link)
    for timestep in range(20):
        exchange(link, timestep)


def test_a_large_observation_arrives_whole(link: Link) -> None:
    sides = {f"view{n}": (720, 1280, 3) for n in range(3)}
    begun(link, instructions(cameras=sides))
    pictures = {
        name: Picture(pixels=np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        for name, shape in sides.items()
    }
    link.send(Observation(3, 1.0, True, np.ones(3, np.float32), pictures), WAIT_S)
    chunk = answer_of(link)
    assert isinstance(chunk, Chunk)
    assert chunk.timestep == 3


def test_no_answer_is_none(link: Link) -> None:
    begun(link)
    assert link.receive(0.5) is None
    exchange(link, 1)  # and what was waited for in vain is not missing later
    assert link.receive(0.05) is None
    exchange(link, 2)


def test_three_clients_do_not_mix(servers: Servers, transport: str) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        made = servers.link(transport)
        try:
            begun(made)
            for timestep in range(first, first + 15):
                exchange(made, timestep)
        except BaseException as error:
            failures.append(error)
        finally:
            made.close()

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        (Instructions("no such type", ""), "bad_policy", "builtin"),
        (Instructions("qwen_vla", "/no/such/place"), "not_found", "/no/such/place"),
        (instructions("sing"), "bad_policy", "sway"),
        (instructions("no_load"), "failed", "not to load"),
    ],
)
def test_a_policy_that_cannot_be_had_is_refused(
    link: Link, wanted: Instructions, kind: str, words: str
) -> None:
    assert words in refused(kind, lambda: link.begin(wanted, WAIT_S))
    begun(link)
    exchange(link, 1)


def test_a_prediction_that_fails_is_told(link: Link) -> None:
    begun(link, instructions("raise"))
    link.send(observation(1), WAIT_S)
    refused("failed", lambda: answer_of(link))


def test_an_observation_that_does_not_fit_is_refused(link: Link) -> None:
    begun(link)
    other = Observation(1, 1.0, True, np.zeros(5, np.float32))

    def send_and_hear() -> None:
        link.send(other, WAIT_S)
        answer_of(link)

    refused("bad_message", send_and_hear)
    exchange(link, 2)


def test_before_the_handshake_there_is_no_connection(link: Link) -> None:
    with pytest.raises(LinkLost, match="not connected"):
        link.send(observation(1), 1.0)
    with pytest.raises(LinkLost, match="not connected"):
        link.receive(1.0)


def test_a_server_that_is_not_there(transport: str) -> None:
    (port,) = free_ports(1)
    from serving.transports.grpc_link import GrpcLink
    from serving.transports.zmq_link import ZmqLink

    made = (ZmqLink if transport == "zmq" else GrpcLink)(f"127.0.0.1:{port}")
    begun_at = time.monotonic()
    with pytest.raises(LinkLost, match=f"127.0.0.1:{port}"):
        made.begin(instructions(), 60.0)
    assert time.monotonic() - begun_at < 30  # it does not use up the time it is given
    made.close()


def test_loading_may_take_longer_than_the_handshake(link: Link, transport: str) -> None:
    link.begin(instructions(f"hold?rows=5&load_s={2.2 if transport == 'grpc' else 2.3}"), 2.0)
    exchange(link, 1)


def test_others_are_served_while_a_policy_loads(servers: Servers, transport: str) -> None:
    slow, fast = servers.link(transport), servers.link(transport)
    begun(fast)
    path = f"hold?rows=5&load_s={1.0 if transport == 'grpc' else 1.1}"  # a policy not loaded yet
    loading = threading.Thread(target=lambda: slow.begin(instructions(path), WAIT_S))
    loading.start()
    answered = 0
    while loading.is_alive():
        exchange(fast, answered := answered + 1)
    assert answered > 3
    exchange(slow, 1)
    slow.close()
    fast.close()


def test_an_error_of_the_servers_own_ends_nothing(
    servers: Servers, link: Link, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(link)

    def fails(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    with monkeypatch.context() as patch:
        patch.setattr(servers.engine, "observe", fails)
        message = refused("failed", lambda: (link.send(observation(1), WAIT_S), answer_of(link)))
    assert "its log has it" in message
    exchange(link, 2)


def test_what_makes_a_session_a_clients_own_is_told_to_nobody(servers: Servers, link: Link) -> None:
    begun(link)
    own = link._session.hex() if isinstance(link, ZmqLink) else link._metadata[0][1]  # type: ignore[attr-defined]
    assert len(own) == 32
    assert own not in str(servers.engine.metrics())


def test_a_session_that_the_server_forgot(servers: Servers, link: Link) -> None:
    before = set(servers.engine.clients())
    begun(link)
    (client,) = set(servers.engine.clients()) - before
    servers.engine.forget(client)

    def go_on() -> None:
        for timestep in range(100):
            link.send(observation(timestep), WAIT_S)
            link.receive(0.2)

    refused("no_session", go_on)
    begun(link)
    exchange(link, 1)


def test_closing_lets_go_of_who_waits(link: Link) -> None:
    begun(link)
    ended = threading.Event()

    def wait() -> None:
        try:
            while link.receive(60.0) is None:
                pass
        except LinkLost:
            ended.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not ended.wait(0.3)
    link.close()
    assert ended.wait(WAIT_S)
    with pytest.raises(LinkLost):
        link.begin(instructions(), 1.0)


def test_an_oversize_observation_never_leaves(link: Link) -> None:
    pixels = np.zeros((4096, 6000, 3), np.uint8)  # 70 MiB
    begun(link, instructions(cameras={"front": pixels.shape}))
    huge = Observation(1, 1.0, True, np.zeros(3, np.float32), {"front": Picture(pixels=pixels)})
    with pytest.raises(BadMessage, match="MiB"):
        link.send(huge, WAIT_S)


def server_program(program: Callable[..., Child], ports: list[int]) -> Child:
    child = program(
        *("serving/policy_server.py", "--port", str(ports[0]), "--zmq_port", str(ports[1])),
        *("--inference_latency", "0"),
    )
    child.wait_for(r"\[SERVER\] ready")
    return child


def to_program(transport: str, ports: list[int]) -> Link:
    from serving.transports.grpc_link import GrpcLink
    from serving.transports.zmq_link import ZmqLink

    if transport == "zmq":
        return ZmqLink(f"127.0.0.1:{ports[1]}")
    return GrpcLink(f"127.0.0.1:{ports[0]}")


def until_lost(link: Link) -> str:
    """What `receive` or `send` says in the end, of a server that is gone."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            link.receive(0.2)
            link.send(observation(1), 1.0)
        except LinkLost as lost:
            return str(lost)
        except ServingError as error:
            assert error.kind == "no_session"
            return str(error)
    raise AssertionError("the link was not lost")


def test_a_server_killed_and_restarted(program: Callable[..., Child]) -> None:
    ports = free_ports(2)
    server = server_program(program, ports)
    links = [begun(to_program(transport, ports)) for transport in TRANSPORTS]
    server.kill()
    for link in links:
        with pytest.raises(LinkLost):
            until_lost(link)
            link.begin(instructions(), 1.0)
    server_program(program, ports)
    for link in links:
        begun(link)
        exchange(link, 2)
        link.close()


def began(link: Link) -> bool:
    """Whether the server could be reached; a client tries again where not."""
    try:
        begun(link)
    except LinkLost:
        return False
    return True


# Now and then, on a busy machine, the server is not reached again for 30 s after it goes on; why is
# not known.
@pytest.mark.slow
def test_a_server_that_falls_silent_is_lost_in_seconds(program: Callable[..., Child]) -> None:
    """Stopped, it keeps its connections open and answers nothing, as when the network is cut."""
    ports = free_ports(2)
    server = server_program(program, ports)
    links = [begun(to_program(transport, ports)) for transport in TRANSPORTS]
    for link in links:
        exchange(link, 1)
    server.process.send_signal(signal.SIGSTOP)
    lost: list[str] = []

    def wait(link: Link) -> None:
        with pytest.raises(LinkLost) as caught:
            while True:
                link.receive(0.5)
        lost.append(str(caught.value))

    threads = [threading.Thread(target=wait, args=(link,), daemon=True) for link in links]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(lost) == len(links), "both links to be lost", 15.0)
    server.process.send_signal(signal.SIGCONT)
    for link in links:
        what = f"the server to be back; it lives: {server.process.poll() is None}; {server.text}"
        wait_until(lambda link=link: began(link), what)  # type: ignore[misc]
        exchange(link, 2)
    # And one that comes back before anyone notices, but with nothing in its memory.
    server.kill()
    server_program(program, ports)
    for link in links:
        assert until_lost(link)
        begun(link)
        exchange(link, 3)
        link.close()


def test_a_killed_server_is_lost_by_its_connections_end(program: Callable[..., Child]) -> None:
    """At once, for the robot must stop; not when pings have gone unanswered for seconds."""
    ports = free_ports(2)
    server = server_program(program, ports)
    links = [begun(to_program(transport, ports)) for transport in TRANSPORTS]
    said: list[str] = []

    def wait(link: Link) -> None:
        with pytest.raises(LinkLost) as caught:
            while True:
                link.receive(60.0)
        said.append(str(caught.value))

    threads = [threading.Thread(target=wait, args=(link,), daemon=True) for link in links]
    for thread in threads:
        thread.start()
    server.kill()
    wait_until(lambda: len(said) == len(links), "both links to be lost")
    assert not any("not answer" in words for words in said), said
    assert any("ended the connection" in words for words in said), said
    for link in links:
        link.close()
