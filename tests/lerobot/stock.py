"""LeRobot's own policy server and robot client as processes, and its client's side of the wire."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

from serving.messages import Chunk, Instructions, Observation
from tests.support import Child, free_ports

FPS = 30


class StockServer:
    """`python -m lerobot.async_inference.policy_server`."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self.child = Child(
            *("-m", "lerobot.async_inference.policy_server", "--host=127.0.0.1"),
            *(f"--port={port}", f"--fps={FPS}", "--inference_latency=0", "--obs_queue_timeout=2"),
            cwd=folder,  # it makes a folder for logs
        )
        self.child.wait_for("PolicyServer started", 120)

    def close(self) -> None:
        self.child.kill()


def stock_client(folder: Path, address: str, kind: str, path: Path, *robot: str) -> Child:
    """`lerobot.async_inference.robot_client` with its command line; it knows `mockarm` too."""
    program = (
        "import tests.lerobot.mockarm, lerobot.cameras.zmq; "
        "from lerobot.async_inference.robot_client import async_client; async_client()"
    )
    return Child(
        *("-c", program, *robot, f"--server_address={address}", f"--policy_type={kind}"),
        *(f"--pretrained_name_or_path={path}", "--policy_device=cpu", "--client_device=cpu"),
        *("--actions_per_chunk=20", "--chunk_size_threshold=0.5", f"--fps={FPS}"),
        *("--aggregate_fn_name=latest_only", "--task=pick"),
        cwd=folder,
    )


class Speaker:
    """What LeRobot's client puts on the wire and takes from it, one call at a time."""

    def __init__(self, address: str) -> None:
        # A connection of its own, as a client in another process has: that is who it is.
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, own)
        self.stub: Any = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._names: tuple[str, ...] = ()

    def begin(self, instructions: Instructions) -> None:
        """Ready, and the pickled instructions."""
        self._names = instructions.state_names
        size = (len(self._names),)
        features: dict[str, Any] = {
            "observation.state": {"dtype": "float32", "shape": size, "names": list(self._names)}
        }
        for name, shape in instructions.cameras.items():
            axes = ["height", "width", "channels"]
            features[f"observation.images.{name}"] = {
                "dtype": "image",
                "shape": shape,
                "names": axes,
                "info": {"is_depth_map": False},
            }
        asked = RemotePolicyConfig(
            instructions.policy_type,
            instructions.path,
            features,
            instructions.actions_per_chunk,
            instructions.device,
        )
        self.stub.Ready(services_pb2.Empty(), timeout=60)
        self.stub.SendPolicyInstructions(
            services_pb2.PolicySetup(data=pickle.dumps(asked)), timeout=120
        )

    def send(self, seen: Observation) -> None:
        """A pickled observation, in parts."""
        raw: dict[str, Any] = dict(zip(self._names, map(float, seen.state), strict=True))
        raw |= {name: picture.pixels for name, picture in seen.pictures.items()}
        raw["task"] = seen.task
        timed = TimedObservation(
            timestamp=seen.timestamp, timestep=seen.timestep, observation=raw, must_go=seen.must_go
        )
        self.send_bytes(pickle.dumps(timed))

    def send_bytes(self, data: bytes) -> None:
        """Any bytes as an observation."""
        parts = send_bytes_in_chunks(data, services_pb2.Observation, silent=True)
        self.stub.SendObservations(parts, timeout=60)

    def receive(self) -> list[TimedAction]:
        """The next chunk; empty when none came in the server's time."""
        data = self.stub.GetActions(services_pb2.Empty(), timeout=60).data
        actions: list[TimedAction] = pickle.loads(data) if data else []
        return actions

    def close(self) -> None:
        self._channel.close()


def rows_of(answer: list[TimedAction] | Chunk) -> tuple[list[int], list[float], np.ndarray]:
    """Timesteps, timestamps and actions of a chunk, whoever sent it."""
    if isinstance(answer, Chunk):
        count = range(len(answer.actions))
        steps = [answer.timestep + k for k in count]
        return steps, [answer.timestamp + k * answer.dt for k in count], answer.actions
    return (
        [row.get_timestep() for row in answer],
        [row.get_timestamp() for row in answer],
        np.stack([row.get_action().numpy() for row in answer]),
    )
