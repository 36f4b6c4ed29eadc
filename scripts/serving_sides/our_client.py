"""This project's client on the wire: a link over ZeroMQ or gRPC, used as the robot client does."""

from __future__ import annotations

import time

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
from serving.link import Link, LinkLost
from serving.messages import Chunk, Instructions, Observation, Picture

__all__ = ["PATH", "POLICY", "OurClient"]

POLICY = "builtin"
PATH = "hold"  # every row is the state
_CALL_S = 30.0


class OurClient:
    """A link that is asked for one chunk at a time."""

    def __init__(self, link: Link) -> None:
        """Use `link`, which is closed with this."""
        self._link = link

    def begin(self, timeout_s: float) -> None:
        """Handshake and instructions, again and again until the server is there."""
        shape = (HEIGHT, WIDTH, 3)
        cameras = dict.fromkeys(CAMERAS, shape)
        wanted = Instructions(
            POLICY, PATH, actions_per_chunk=ACTION_ROWS, state_names=STATE_NAMES, cameras=cameras
        )
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._link.begin(wanted, max(deadline - time.monotonic(), 0.1))
            except LinkLost as error:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"no policy server: {error}") from None
                time.sleep(0.1)  # a refused connection fails at once

    def exchange(self, scene: Scene) -> NDArray[np.float32]:
        """Send the observation, get its chunk."""
        pictures = {name: Picture(pixels) for name, pixels in scene.pictures.items()}
        observation = Observation(scene.step, time.time(), True, scene.state, pictures, TASK)
        self._link.send(observation, _CALL_S)
        answer = self._link.receive(_CALL_S)
        if not isinstance(answer, Chunk):
            raise SystemExit(f"step {scene.step}: no chunk came, but {type(answer).__name__}")
        return answer.actions

    def close(self) -> None:
        """Close the link."""
        self._link.close()
