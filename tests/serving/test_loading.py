"""A server that loads a policy: waited for as long as it can be heard, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.network_proxy import NetworkProxy
from serving.engine import Engine, EngineOptions
from serving.link import Link, LinkLost
from serving.messages import Instructions
from serving.policies import load_policy
from serving.served import ServedPolicy
from serving.supervisor import Connection, ConnectionOptions
from serving.transports.grpc_link import GrpcLink
from serving.transports.zmq_link import ZmqLink
from tests.serving.test_grpc_server import Stock
from tests.serving.wires import WAIT_S, Servers, exchange, instructions
from tests.support import wait_until


class Gate:
    """What loading waits for; `entered` counts those that came to it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = 0

    def wait(self) -> None:
        self.entered += 1
        assert self.open.wait(60)


class SlowStock(Stock):
    """LeRobot's server, whose loading waits for a gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.asked = gate, 0
        super().__init__()

    def instruct(self, request: Any, context: Any) -> Any:
        self.gate.wait()
        return super().instruct(request, context)

    def actions(self, request: Any, context: Any) -> bytes:
        self.asked += 1
        return super().actions(request, context)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture
def stock(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStock]:
    monkeypatch.setattr("serving.transports.grpc_link._STOCK_LOADING_SILENT_S", 3.0)
    made = SlowStock(gate)
    yield made
    gate.open.set()
    made.server.stop(None).wait()


@pytest.fixture
def servers(gate: Gate) -> Iterator[Servers]:
    def load(wanted: Instructions, options: EngineOptions) -> ServedPolicy:
        gate.wait()
        return load_policy(wanted, options)

    made = Servers(engine=Engine(EngineOptions(inference_latency_s=0.0), load=load))
    yield made
    gate.open.set()
    made.close()


class Beginning(threading.Thread):
    """`begin` in a thread; `error` is what it raised."""

    def __init__(self, link: Link) -> None:
        super().__init__(daemon=True)
        self.link = link
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.link.begin(instructions(), WAIT_S)
        except Exception as error:
            self.error = error


@pytest.fixture(params=["grpc", "zmq", "stock"])
def target(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Which server, and its port."""
    kind = str(request.param)
    if kind == "stock":
        return kind, request.getfixturevalue("stock").port
    servers: Servers = request.getfixturevalue("servers")
    return kind, getattr(servers, kind).port


def link_to(kind: str, port: int) -> Link:
    return (ZmqLink if kind == "zmq" else GrpcLink)(f"127.0.0.1:{port}")


def test_a_server_that_is_heard_is_waited_for_and_it_is_said(
    target: tuple[str, int], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving.link")
    kind, port = target
    beginning = Beginning(link_to(kind, port))
    # Longer than anybody is waited for who says nothing.
    wait_until(lambda: "is loading the policy" in caplog.text, "a word of it", 60)
    assert beginning.is_alive(), beginning.error
    gate.open.set()
    beginning.join(WAIT_S)
    assert not beginning.is_alive() and beginning.error is None
    exchange(beginning.link, 1)
    assert gate.entered == 1
    beginning.link.close()


def test_a_server_that_falls_silent_while_it_loads_is_lost(
    target: tuple[str, int], gate: Gate
) -> None:
    kind, port = target
    with NetworkProxy(("127.0.0.1", port)) as network:
        beginning = Beginning(link_to(kind, network.port))
        wait_until(lambda: gate.entered, "the policy to be asked for")
        network.cut()
        beginning.join(WAIT_S)
        assert not beginning.is_alive(), "it waits for half an hour"
        assert isinstance(beginning.error, LinkLost)
        network.heal()
        gate.open.set()
        again = Beginning(beginning.link)
        again.join(WAIT_S)
        assert again.error is None
        exchange(again.link, 2)
        again.link.close()


def test_a_server_that_is_lost_again_while_it_loads_is_given_up_in_time(
    stock: SlowStock, gate: Gate
) -> None:
    gate.open.set()
    with NetworkProxy(("127.0.0.1", stock.port)) as network:
        link = GrpcLink(f"127.0.0.1:{network.port}")
        options = ConnectionOptions(connect_timeout_s=WAIT_S, reconnect_timeout_s=5.0)
        connection = Connection(link, instructions(), options)
        try:
            assert connection.begin(threading.Event())
            connection.start()
            gate.open.clear()

            def asked_again() -> bool:
                # Where nothing is on its way at that moment, gRPC connects again without a word.
                if connection.session is not None:
                    network.reset()
                return gate.entered == 2

            wait_until(asked_again, "the policy to be asked for again")
            assert connection.failure is None
            network.cut()
            wait_until(lambda: connection.failure is not None, "giving up")
            assert connection.failure is not None and connection.failure.code == 1
            assert "did not come back within 5 s (--reconnect_timeout)" in str(connection.failure)
        finally:
            connection.close()
