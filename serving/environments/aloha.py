"""Two ViperX arms (gym-aloha): a peg into a socket, a cube from hand to hand."""

from __future__ import annotations

import math

import gym_aloha  # noqa: F401 — registers

from serving.environments.any_gym import made_by_id
from serving.environments.values import EnvironmentOptions, Idle, Simulator

__all__ = ["make"]

_FPS, _EPISODE = 50.0, 400
_TASKS = {
    "AlohaInsertion-v0": "Insert the peg into the socket.",
    "AlohaTransferCube-v0": "Pick up the cube with the right arm and transfer it to the left arm.",
}
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_NAMES = tuple(f"{side}_{joint}.pos" for side in ("left", "right") for joint in _ARM)
# The action space says -1 to 1, and the arms' home already lies outside of that: an elbow stands at
# 1.16 rad. Joints are in radians, a gripper is 0 closed to 1 open, and is told to press beyond.
_MOST = (*[math.pi] * 6, 1.5) * 2
_LEAST = (*[-math.pi] * 6, -0.5) * 2


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """With the picture from above and the joints, as LeRobot's policies for it take them."""
    own = {"obs_type": "pixels_agent_pos", "render_mode": "rgb_array", **options.own}
    task = options.task or "AlohaInsertion-v0"
    env = made_by_id(f"gym_aloha/{task}", options.episode_length or _EPISODE, own)
    return Simulator(
        env,
        fps or _FPS,
        {"pixels/top": "observation.images.top", "agent_pos": "observation.state"},
        Idle("hold"),
        _TASKS.get(task, ""),
        _NAMES,
        _NAMES,
        (_LEAST, _MOST),
    )
