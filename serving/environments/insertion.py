"""This project's insertion rig (`sim.environment`)."""

from __future__ import annotations

from common.program import OptionError
from serving.environments.values import EnvironmentOptions, Idle, Simulator
from sim.environment import InsertionEnv
from sim.model import VIEWS

__all__ = ["make"]

_FPS = 10.0
_JOINTS = tuple(f"joint_{k}.pos" for k in range(1, 7))


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """The rig with joint targets as actions; its cameras are called as its views are."""
    own = options.only(
        "episode_s", "views", "width", "height", "action_space_name", "gripper", "rig"
    )
    hz = fps or _FPS
    if options.episode_length:
        own["episode_s"] = options.episode_length / hz
    env = InsertionEnv(control_hz=hz, **own)
    views = own.get("views", VIEWS)
    features = {f"pixels/{view}": f"observation.images.{view}" for view in views}
    features |= {"agent_pos": "observation.state", "sensor": "observation.sensor"}
    names = _JOINTS + (("gripper.pos",) if own.get("gripper") else ())
    if own.get("action_space_name") == "joint_delta":
        return Simulator(env, hz, features, Idle("noop"), state_names=_JOINTS)
    if options.task not in ("", "Insertion-v0"):
        raise OptionError(f"the insertion rig has no task {options.task!r}")
    return Simulator(env, hz, features, Idle("hold"), state_names=_JOINTS, action_names=names)
