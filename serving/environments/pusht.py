"""Push-T (gym-pusht): a disc pushes a T-shaped block onto its place in the plane."""

from __future__ import annotations

import gym_pusht  # noqa: F401 — registers

from serving.environments.any_gym import made_by_id
from serving.environments.values import EnvironmentOptions, Idle, Simulator

__all__ = ["make"]

_FPS, _EPISODE = 10.0, 300
_XY = ("x.pos", "y.pos")


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """With pictures and the disc's place, as LeRobot's policies for it take them."""
    own = {"obs_type": "pixels_agent_pos", "render_mode": "rgb_array", **options.own}
    env = made_by_id(
        f"gym_pusht/{options.task or 'PushT-v0'}", options.episode_length or _EPISODE, own
    )
    return Simulator(
        env,
        fps or _FPS,
        {"pixels": "observation.image", "agent_pos": "observation.state"},
        Idle("hold"),
        "Push the T-shaped block onto the T-shaped target.",
        _XY,
        _XY,
    )
