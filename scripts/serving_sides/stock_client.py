"""What LeRobot's own client does on the wire: its pickles, its pieces of 2 MiB, its stubs."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.serving_sides.scene import (
    ACTION_ROWS,
    CAMERAS,
    HEIGHT,
    STATE_NAMES,
    TASK,
    WIDTH,
    Scene,
)

__all__ = ["StockClient"]

_CALL_S = 30.0


class StockClient:
    """LeRobot's stubs, messages and functions, called in the order of its `RobotClient`."""

    def __init__(self, address: str, policy: str, path: str) -> None:
        """`policy`, `path`: what the instructions name."""
        import grpc
        from lerobot.async_inference import helpers
        from lerobot.transport import services_pb2, services_pb2_grpc, utils

        self._messages, self._helpers, self._utils = services_pb2, helpers, utils
        self._channel = grpc.insecure_channel(
            address, utils.grpc_channel_options(initial_backoff="0.0333s")
        )
        self._stub = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._policy, self._path = policy, path

    def begin(self, timeout_s: float) -> None:
        """Ready, then the instructions."""
        import grpc
        from lerobot.utils.constants import OBS_STR
        from lerobot.utils.feature_utils import hw_to_dataset_features

        joints: dict[str, Any] = dict.fromkeys(STATE_NAMES, float)
        pictures = dict.fromkeys(CAMERAS, (HEIGHT, WIDTH, 3))
        features = hw_to_dataset_features(joints | pictures, OBS_STR, use_video=False)
        setup = self._helpers.RemotePolicyConfig(self._policy, self._path, features, ACTION_ROWS)
        data = self._messages.PolicySetup(data=pickle.dumps(setup))
        deadline = time.monotonic() + timeout_s
        try:
            self._stub.Ready(self._messages.Empty(), timeout=timeout_s, wait_for_ready=True)
            self._stub.SendPolicyInstructions(data, timeout=deadline - time.monotonic())
        except grpc.RpcError as error:
            raise TimeoutError(f"no policy server: {error.details()}") from None

    def exchange(self, scene: Scene) -> NDArray[np.float32]:
        """Send the observation, get the actions, put them together as one array."""
        raw: dict[str, Any] = dict(zip(STATE_NAMES, scene.state.tolist(), strict=True))
        raw |= scene.pictures
        raw["task"] = TASK
        timed = self._helpers.TimedObservation(
            timestamp=time.time(), timestep=scene.step, observation=raw, must_go=True
        )
        data = pickle.dumps(timed)
        pieces = self._utils.send_bytes_in_chunks(
            data, self._messages.Observation, log_prefix="[CLIENT] Observation", silent=True
        )
        self._stub.SendObservations(pieces, timeout=_CALL_S)
        answer = self._stub.GetActions(self._messages.Empty(), timeout=_CALL_S)
        actions = pickle.loads(answer.data)  # what LeRobot does; this server is our own child
        return np.stack([action.get_action().numpy() for action in actions])

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
