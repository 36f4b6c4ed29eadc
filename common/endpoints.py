"""One table of every stream: pattern, port, topic, expected rate, high-water mark.

Nothing else in the project names a port.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACTION", "CAMERA", "GRPC", "RIG_COMMAND", "RIG_STATE", "ROBOT", "SENSOR", "SERVING"]
__all__ += ["STREAMS", "TIME", "Endpoint", "address"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One stream.

    Attributes:
        stream: its name in counters, logs and summaries.
        pattern: socket types, sender → receiver of the data.
        port: the default port.
        rate_hz: messages a second to expect (samples a second for the sensor).
        hwm: messages that may wait in a ZeroMQ queue; 0 for UDP.
        topic: the first frame of a published message, empty where there is none.
    """

    stream: str
    pattern: str
    port: int
    rate_hz: float
    hwm: int
    topic: bytes = b""


CAMERA = Endpoint("camera", "PUSH→PULL", 5555, 30.0, 10)
ROBOT = Endpoint("robot", "PUB→SUB", 5556, 100.0, 10, b"robot_state")
ACTION = Endpoint("action", "PUB→SUB", 5557, 10.0, 10, b"action")
TIME = Endpoint("time", "DEALER→ROUTER", 5558, 2.0, 10)
SENSOR = Endpoint("sensor", "UDP", 9999, 650.0, 0)

# Between the parts of the simulated rig, on one machine: its state out, joint targets in.
RIG_STATE = Endpoint("rig_state", "PUB→SUB", 5560, 260.0, 100, b"rig")
RIG_COMMAND = Endpoint("rig_command", "PUSH→PULL", 5561, 100.0, 10)

# A policy behind a network: LeRobot's gRPC service, and our own transport beside it.
GRPC = Endpoint("grpc", "gRPC", 8080, 30.0, 0)
SERVING = Endpoint("serving", "DEALER→ROUTER", 8081, 30.0, 8)

STREAMS = (CAMERA, ROBOT, ACTION, TIME, SENSOR, RIG_STATE, RIG_COMMAND, GRPC, SERVING)


def address(host: str, port: int) -> str:
    """The ZeroMQ address of a TCP endpoint; an IPv6 host may come with or without brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host and "[" not in host else f"tcp://{host}:{port}"
