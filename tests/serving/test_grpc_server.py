"""The gRPC end alone, with calls as LeRobot's client makes them and as nobody should."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.link import LinkLost
from serving.messages import MAX_MESSAGE, BadMessage, Chunk, RefusalKind, ServingError
from serving.packed import encode, join
from serving.pickles import lerobot
from serving.transports import protobuf
from serving.transports.grpc_clients import Clients
from serving.transports.grpc_common import SESSION, STATUS
from serving.transports.grpc_link import GrpcLink
from tests.serving.wires import (
    WAIT_S,
    RawClient,
    Servers,
    exchange,
    instructions,
    observation,
    serving,
    status_of,
)
from tests.support import wait_until

SETUP = lerobot.encode_setup(instructions())


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with serving(upload_timeout_s=3.0) as made:
        yield made


@pytest.fixture
def client(servers: Servers) -> Iterator[RawClient]:
    """A client that LeRobot's could be; its session is over at the end."""
    before = set(servers.engine.clients())
    made = RawClient(servers.grpc.port)
    yield made
    made.close()
    for name in set(servers.engine.clients()) - before:
        servers.engine.forget(name)


def begun(client: RawClient) -> RawClient:
    client.ready()
    client.instruct(SETUP)
    return client


def picked(timestep: int) -> bytes:
    return lerobot.encode_observation(observation(timestep), instructions())


def test_a_lerobot_client_is_served(client: RawClient) -> None:
    begun(client)
    for timestep in (1, 2):
        client.observe(picked(timestep))
        chunk = lerobot.decode_actions(client.actions())
        assert chunk.timestep == timestep
        assert chunk.timestamp == observation(timestep).timestamp
        assert chunk.dt == pytest.approx(1 / 30)
        assert chunk.actions.tolist() == [observation(timestep).state.tolist()] * 5
    assert client.actions() == b""  # no observation came


def test_without_a_session_it_is_told_what_to_do(client: RawClient) -> None:
    for call in (client.actions, lambda: client.observe(picked(1)), lambda: client.instruct(SETUP)):
        status, details = status_of(call)
        assert status == "FAILED_PRECONDITION"
        assert "say Ready" in details
    client.ready()
    assert status_of(client.actions)[0] == "FAILED_PRECONDITION"


class Exploit:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_no_pickle_is_executed(
    servers: Servers, client: RawClient, tmp_path: Path, protocol: int
) -> None:
    evil = pickle.dumps(Exploit(tmp_path / "owned"), protocol=protocol)
    before = servers.refused("grpc", "bad_message")
    client.ready()
    assert status_of(lambda: client.instruct(evil))[0] == "INVALID_ARGUMENT"
    client.instruct(SETUP)
    assert status_of(lambda: client.observe(evil))[0] == "INVALID_ARGUMENT"
    assert not (tmp_path / "owned").exists()
    assert servers.refused("grpc", "bad_message") == before + 2
    client.observe(picked(1))
    assert client.actions()


def part(state: int, data: bytes) -> bytes:
    made: bytes = protobuf.Observation(transfer_state=state, data=data).SerializeToString()
    return made


OURS = join(encode(observation(1)))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([part(protobuf.MIDDLE, OURS)], "order"),
        ([part(protobuf.BEGIN, OURS), part(protobuf.BEGIN, OURS)], "order"),
        ([part(0, OURS)], "transfer state"),
        ([part(7, OURS)], "transfer state"),
        ([part(protobuf.BEGIN, OURS)], "before its last part"),
        ([], "before its last part"),
        ([part(protobuf.END, OURS[:-1])], "truncated"),
        ([part(protobuf.END, OURS + b"x")], "after the end"),
        ([part(protobuf.END, b"GET / HTTP/1.1")], "neither"),
        ([part(protobuf.END, b"")], "neither"),
        ([b"\xff\xff\xff"], "not a part"),
        ([part(protobuf.BEGIN, b"\x80\x05"), *[part(protobuf.MIDDLE, b"")] * 1100], "many parts"),
        (
            [part(protobuf.BEGIN, b"\x80" * (2 << 20)), *[part(2, bytes(2 << 20))] * 32],
            "over 64 MiB",
        ),
    ],
)
def test_what_is_no_observation_is_refused(
    client: RawClient, sent: list[bytes], words: str
) -> None:
    begun(client)
    status, details = status_of(lambda: client.send(iter(sent), timeout=WAIT_S))
    assert (status, words in details) == ("INVALID_ARGUMENT", True), details
    client.observe(OURS)
    assert client.actions()


def test_a_part_over_its_size_is_refused(client: RawClient) -> None:
    begun(client)
    huge = part(protobuf.END, bytes(5 << 20))
    assert status_of(lambda: client.send(iter([huge]), timeout=WAIT_S))[0] == "RESOURCE_EXHAUSTED"


def test_a_client_that_dies_in_the_middle_of_an_upload(servers: Servers, client: RawClient) -> None:
    before = servers.refused("grpc", "bad_message")
    begun(client)
    going = threading.Event()

    def never_ending() -> Iterator[bytes]:
        yield part(protobuf.BEGIN, OURS[:100])
        going.set()
        threading.Event().wait(WAIT_S)

    call = client.send.future(never_ending())
    assert going.wait(WAIT_S)
    call.cancel()
    wait_until(lambda: servers.refused("grpc", "bad_message") > before, "the cut to be noticed")
    client.observe(OURS)
    assert client.actions()


def test_an_upload_that_never_ends_is_ended(servers: Servers, client: RawClient) -> None:
    begun(client)
    stop = threading.Event()

    def never_ending() -> Iterator[bytes]:
        yield part(protobuf.BEGIN, OURS[:100])
        stop.wait(WAIT_S)

    before = servers.refused("grpc", "timed_out")
    call = client.send.future(never_ending())
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(WAIT_S)
    stop.set()
    assert servers.refused("grpc", "timed_out") > before


def test_get_actions_that_was_given_up_eats_no_observation(
    servers: Servers, client: RawClient
) -> None:
    begun(client)
    for timestep in range(5):
        given_up = client.get.future(protobuf.Empty())
        with pytest.raises(grpc.FutureTimeoutError):
            given_up.result(0.05)
        given_up.cancel()
        client.observe(picked(timestep))
        deadline = time.monotonic() + WAIT_S
        while not (data := client.actions()):
            assert time.monotonic() < deadline
        assert lerobot.decode_actions(data).timestep == timestep


def test_one_client_cannot_take_all_the_threads(client: RawClient) -> None:
    begun(client)
    asked = [client.get.future(protobuf.Empty()) for _ in range(12)]
    failed = [call for call in asked if call.exception(WAIT_S) is not None]
    assert 1 <= len(failed) <= 10
    assert {call.code().name for call in failed} == {"RESOURCE_EXHAUSTED"}


def test_calls_that_wait_for_a_policy_leave_threads_for_the_others() -> None:
    with serving(most_sessions=2) as made:
        greedy = [RawClient(made.grpc.port, ((SESSION, "a" * 32),)) for _ in range(4)]
        greedy[0].ready()
        wanted = protobuf.PolicySetup(data=join(encode(instructions("hold?load_s=5"))))
        calls = [
            client._instruct.future(wanted, metadata=client.metadata)
            for client in greedy
            for _ in range(16)
        ]
        wait_until(lambda: sum(call.done() for call in calls) == len(calls) - 2, "the refusals")
        other = begun(RawClient(made.grpc.port))
        other.observe(picked(1))
        assert lerobot.decode_actions(other.actions()).timestep == 1
        for client in (*greedy, other):
            client.close()


def test_many_waiting_clients_starve_nobody() -> None:
    with serving(most_sessions=24, obs_queue_timeout_s=5.0) as made:
        clients = [RawClient(made.grpc.port) for _ in range(24)]
        waiting = [begun(client).get.future(protobuf.Empty()) for client in clients]
        for client in clients:
            client.observe(picked(1))
        for call in waiting:
            assert lerobot.decode_actions(call.result(WAIT_S).data).timestep == 1
        status, details = status_of(RawClient(made.grpc.port).ready)
        assert status == "RESOURCE_EXHAUSTED", details
        for client in clients:
            client.close()


def test_a_lerobot_client_that_reconnects_goes_on(servers: Servers, client: RawClient) -> None:
    begun(client)
    client.close()
    again = RawClient(servers.grpc.port)
    deadline = time.monotonic() + WAIT_S
    while True:  # it asks as LeRobot's does, until its old connection is known to be quiet
        try:
            again.observe(picked(4))
            break
        except grpc.RpcError as error:
            assert error.code().name == "FAILED_PRECONDITION"
            assert time.monotonic() < deadline
            # Refused as well, or, if it has just become known, answered with nothing.
            with contextlib.suppress(grpc.RpcError):
                again.actions()
    assert lerobot.decode_actions(again.actions()).timestep == 4
    again.close()


class Callers:
    """`Clients` with a clock and an engine that only take notes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.adopted: list[tuple[str, str]] = []
        self.clients = Clients(lambda old, new: self.adopted.append((old, new)), lambda: self.now)

    def call(self, peer: str) -> str:
        try:
            with self.clients.calling(peer, None) as caller:
                return caller.name
        except ServingError as error:
            return error.kind


def test_who_may_go_on_with_whose_session() -> None:
    rig = Callers()
    rig.clients.begin("ipv4:10.0.0.1:1000", None)
    assert rig.call("ipv4:10.0.0.1:2000") == "no_session"  # the other may still be there
    assert rig.call("ipv4:10.0.0.2:2000") == "no_session"  # another computer
    rig.now += 1.0
    with rig.clients.calling("ipv4:10.0.0.1:1000", None):
        rig.now += 1.0
        assert rig.call("ipv4:10.0.0.1:2000") == "no_session"  # it is: it asks for actions
    rig.now += 1.0
    assert rig.call("ipv4:10.0.0.1:2000") == "ipv4:10.0.0.1:2000"
    assert rig.adopted == [("ipv4:10.0.0.1:1000", "ipv4:10.0.0.1:2000")]
    rig.now += 1.0
    rig.clients.begin("ipv4:10.0.0.1:3000", None)
    rig.now += 1.0
    assert rig.call("ipv4:10.0.0.1:4000") == "no_session"  # which of the two?


def test_nobody_goes_on_with_a_session_that_began_after_them() -> None:
    """Two robots on one computer, the server was restarted, one of them was too."""
    rig = Callers()
    assert rig.call("ipv4:10.0.0.1:1000") == "no_session"
    rig.now += 1.0
    rig.clients.begin("ipv4:10.0.0.1:2000", None)
    rig.now += 60.0
    assert rig.call("ipv4:10.0.0.1:1000") == "no_session"
    assert rig.adopted == []


def test_our_clients_are_never_taken_for_others() -> None:
    rig = Callers()
    rig.clients.begin("ipv4:10.0.0.1:1000", "0" * 32)
    rig.now += 60.0
    assert rig.call("ipv4:10.0.0.1:2000") == "no_session"
    with rig.clients.calling("ipv4:10.9.9.9:1", "0" * 32) as caller:
        assert caller.name.startswith("grpc:")
    assert rig.clients.name("ipv4:1.1.1.1:1", "../../etc") == "ipv4:1.1.1.1:1"


class Refusing:
    """An engine that refuses, as it is told to."""

    def __init__(self) -> None:
        self.kind: RefusalKind = "failed"

    def __getattr__(self, name: str) -> Any:
        if name in ("close", "clients", "adopt", "forget"):
            return lambda *_: ()

        def refuse(*_: Any) -> None:
            raise ServingError(self.kind, f"{self.kind}\nis what it is")

        return refuse


def test_every_refusal_has_a_status_and_comes_back_as_it_was() -> None:
    engine = Refusing()
    with serving(engine=engine) as made:
        client = RawClient(made.grpc.port)
        for kind in get_args(RefusalKind):
            engine.kind = kind
            assert status_of(client.ready) == (STATUS[kind], f"{kind} is what it is")
            for transport in ("grpc", "zmq"):
                link = made.link(transport)
                with pytest.raises(ServingError) as caught:
                    link.begin(instructions(), WAIT_S)
                assert (caught.value.kind, str(caught.value)) == (kind, f"{kind} is what it is")
                link.close()
        client.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.binary(max_size=300))
def test_parts_are_read_as_the_library_reads_them(state: int, data: bytes) -> None:
    message = protobuf.Observation(transfer_state=state, data=data).SerializeToString()
    assert protobuf.read_part(message) == (state, data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_are_a_part_only_where_they_are_one_for_the_library(message: bytes) -> None:
    try:
        state, data = protobuf.read_part(message)
    except BadMessage:
        return
    # The library also refuses what it cannot nest or name; what both take must be the same.
    try:
        read = protobuf.Observation.FromString(message)
    except Exception:
        return
    assert read.data == data
    assert read.transfer_state & 0xFFFF_FFFF == state & 0xFFFF_FFFF


@pytest.mark.parametrize("size", [0, 1, protobuf.PART, protobuf.PART + 1, 2 * protobuf.PART])
def test_a_message_is_cut_as_lerobot_cuts(size: int) -> None:
    data = os.urandom(size)
    sent = [protobuf.Observation.FromString(message) for message in protobuf.parts(data)]
    assert b"".join(one.data for one in sent) == data
    assert max(len(one.data) for one in sent) <= protobuf.PART
    states = [one.transfer_state for one in sent]
    assert states == [1, *[2] * (len(sent) - 2), 3] if len(sent) > 1 else [3]
    assembly = protobuf.Assembly()
    assert [assembly.add(one.transfer_state, one.data) for one in sent][-1]
    assert assembly.data == data


def test_messages_over_the_bound_are_not_kept() -> None:
    assembly = protobuf.Assembly()
    assembly.add(protobuf.BEGIN, bytes(MAX_MESSAGE))
    with pytest.raises(BadMessage, match="MiB"):
        assembly.add(protobuf.END, b"x")


class Stock:
    """What our link meets in LeRobot's server: its four calls, and nothing of ours in them."""

    def __init__(self) -> None:
        self.setups: list[bytes] = []
        self.waiting: queue.Queue[bytes] = queue.Queue(1)
        self.readies = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        unary, empty = grpc.unary_unary_rpc_method_handler, protobuf.Empty
        handlers = {
            "Ready": unary(self.ready, empty.FromString, empty.SerializeToString),
            "SendPolicyInstructions": unary(
                self.instruct, protobuf.PolicySetup.FromString, empty.SerializeToString
            ),
            "SendObservations": grpc.stream_unary_rpc_method_handler(
                self.observe, protobuf.Observation.FromString, empty.SerializeToString
            ),
            "GetActions": unary(self.actions, empty.FromString, lambda reply: reply),
        }
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(protobuf.SERVICE, handlers),)
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def ready(self, request: Any, context: Any) -> Any:
        self.readies += 1
        return protobuf.Empty()

    def instruct(self, request: Any, context: Any) -> Any:
        self.setups.append(request.data)
        return protobuf.Empty()

    def observe(self, received: Any, context: Any) -> Any:
        self.waiting.put(b"".join(one.data for one in received))
        return protobuf.Empty()

    def actions(self, request: Any, context: Any) -> bytes:
        try:
            seen = lerobot.decode_observation(self.waiting.get(timeout=0.2), instructions())
        except queue.Empty:
            return b""
        if seen.timestep == 13:
            raise RuntimeError("the model fails")
        rows = np.tile(seen.state, (5, 1))
        data = lerobot.encode_actions(Chunk(seen.timestep, seen.timestamp, rows), 0.1)
        reply: bytes = protobuf.Actions(data=data).SerializeToString()
        return reply


def test_our_link_serves_itself_of_a_stock_server() -> None:
    stock = Stock()
    link = GrpcLink(f"127.0.0.1:{stock.port}")
    link.begin(instructions(), WAIT_S)
    assert link.stock
    assert lerobot.decode_setup(stock.setups[0]) == instructions()
    for timestep in (1, 2):
        assert exchange(link, timestep).dt == pytest.approx(0.1)
    assert link.receive(0.5) is None
    link.send(observation(13), WAIT_S)
    with pytest.raises(ServingError, match="the model fails"):
        link.receive(WAIT_S)
    exchange(link, 14)
    stock.server.stop(None).wait()
    with pytest.raises(LinkLost):
        link.send(observation(15), WAIT_S)
    link.close()
