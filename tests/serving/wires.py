"""What tests of the transports share: a server with both, links to it, messages, raw gRPC calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np

from serving.engine import Engine, EngineOptions
from serving.link import Link, LinkLost
from serving.messages import Chunk, FeatureReply, Instructions, Observation, Picture
from serving.transports import protobuf
from serving.transports.grpc_common import method
from serving.transports.grpc_link import GrpcLink
from serving.transports.grpc_server import GrpcServer
from serving.transports.refusals import Refusals
from serving.transports.zmq_link import ZmqLink
from serving.transports.zmq_server import ZmqServer

TRANSPORTS = ("grpc", "zmq")
NAMES = ("shoulder.pos", "elbow.pos", "gripper.pos")
WAIT_S = 20.0
"""How long anything may take on a machine that is busy with other things."""


def instructions(path: str = "hold?rows=5", **changed: Any) -> Instructions:
    wanted: dict[str, Any] = {"state_names": NAMES, "cameras": {"front": (24, 32, 3)}}
    return Instructions("builtin", path, **wanted | changed)


def observation(timestep: int, *, must_go: bool = True, side: int = 24) -> Observation:
    state = np.array([timestep, 0.5, -1.0], np.float32)
    pixels = np.full((side, side * 4 // 3, 3), timestep % 256, np.uint8)
    stamp = 1.75e9 + timestep / 7
    return Observation(timestep, stamp, must_go, state, {"front": Picture(pixels=pixels)}, "go")


class Servers:
    """An engine and both transports in this process, on ports of their own."""

    def __init__(self, *, engine: Any = None, upload_timeout_s: float = 30.0, **options: Any):
        self.options = EngineOptions(
            **{"inference_latency_s": 0.0, "obs_queue_timeout_s": 0.3} | options
        )
        self.engine = engine or Engine(self.options)
        self.refusals = Refusals()
        self.zmq = ZmqServer(self.engine, "127.0.0.1", 0, refusals=self.refusals)
        self.grpc = GrpcServer(
            self.engine,
            self.options,
            "127.0.0.1",
            0,
            refusals=self.refusals,
            upload_timeout_s=upload_timeout_s,
        )

    def refused(self, transport: str, kind: str) -> int:
        return self.refusals.snapshot().get(transport, {}).get(kind, 0)

    def link(self, transport: str) -> Link:
        if transport == "zmq":
            return ZmqLink(f"127.0.0.1:{self.zmq.port}")
        return GrpcLink(f"127.0.0.1:{self.grpc.port}")

    def close(self) -> None:
        self.engine.close()
        self.grpc.close(0.1)
        self.zmq.close()


def answer_of(link: Link) -> Chunk | FeatureReply:
    """The next answer, waited for."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if (reply := link.receive(1.0)) is not None:
            return reply
    raise AssertionError("no answer came")


def exchange(link: Link, timestep: int) -> Chunk:
    """One observation and its chunk, which the `hold` policy makes of the state."""
    sent = observation(timestep)
    link.send(sent, WAIT_S)
    chunk = answer_of(link)
    assert isinstance(chunk, Chunk)
    assert (chunk.timestep, chunk.timestamp) == (sent.timestep, sent.timestamp)
    np.testing.assert_array_equal(chunk.actions, np.tile(sent.state, (5, 1)))
    return chunk


def begun(link: Link, wanted: Instructions | None = None) -> Link:
    """The link after its handshake, tried again where a busy machine made it late."""
    for _ in range(3):
        with contextlib.suppress(LinkLost):
            link.begin(wanted or instructions(), WAIT_S)
            return link
    link.begin(wanted or instructions(), WAIT_S)
    return link


class RawClient:
    """Calls of the service as LeRobot's client makes them, without anything of our link."""

    def __init__(self, port: int, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 1 << 28)],
        )
        self.metadata = metadata
        empty, actions = protobuf.Empty, protobuf.Actions
        self._ready = self.channel.unary_unary(
            method("Ready"), empty.SerializeToString, empty.FromString
        )
        self._instruct = self.channel.unary_unary(
            method("SendPolicyInstructions"),
            protobuf.PolicySetup.SerializeToString,
            empty.FromString,
        )
        self.send = self.channel.stream_unary(method("SendObservations"), None, empty.FromString)
        self.get = self.channel.unary_unary(
            method("GetActions"), empty.SerializeToString, actions.FromString
        )

    def ready(self) -> Any:
        return self._ready(protobuf.Empty(), timeout=WAIT_S, metadata=self.metadata)

    def instruct(self, data: bytes) -> Any:
        request = protobuf.PolicySetup(data=data)
        return self._instruct(request, timeout=WAIT_S, metadata=self.metadata)

    def observe(self, data: bytes) -> Any:
        return self.send(protobuf.parts(data), timeout=WAIT_S, metadata=self.metadata)

    def actions(self) -> bytes:
        reply = self.get(protobuf.Empty(), timeout=WAIT_S, metadata=self.metadata)
        data: bytes = reply.data
        return data

    def close(self) -> None:
        self.channel.close()


def status_of(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and details with which a call fails."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call did not fail")


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Servers]:
    servers = Servers(**options)
    try:
        yield servers
    finally:
        servers.close()
