"""Meta-World's fifty tasks of a Sawyer arm, seen as LeRobot's policies for it see them."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import metaworld
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from common.program import OptionError
from serving.environments.values import EnvironmentOptions, Idle, Simulator

__all__ = ["MetaworldEnv", "make"]

_FPS = 80.0
_TASK = "push-v3"
_STATE = ("hand_x", "hand_y", "hand_z", "gripper")
_ACTION = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
# Where the camera stands in the data sets that policies were trained on (arXiv 2206.14244).
_CORNER2 = (0.75, 0.075, 0.7)


class MetaworldEnv(gymnasium.Env[dict[str, Any], NDArray[Any]]):
    """One task: `pixels` (height, width, 3), and `agent_pos` (4,), the hand's place and opening."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(_FPS)}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, task: str, camera_name: str, episode_length: int, side: int) -> None:
        """Make the task of this name, seen by one camera with pictures of `side` pixels."""
        self._inner = gymnasium.make(
            "Meta-World/MT1",
            disable_env_checker=True,
            env_name=task,
            render_mode="rgb_array",
            camera_name=camera_name,
            width=side,
            height=side,
            max_episode_steps=episode_length or None,
        )
        self._turned = camera_name == "corner2"
        if self._turned:
            model: Any = self._inner.unwrapped.model  # type: ignore[attr-defined]
            model.camera("corner2").pos[:] = _CORNER2
        self.task_description = _in_words(task)
        self.action_space = self._inner.action_space
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Box(0, 255, (side, side, 3), np.uint8),
                "agent_pos": spaces.Box(-np.inf, np.inf, (len(_STATE),), np.float64),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Another goal and other objects, by the seed."""
        super().reset(seed=seed)
        raw, info = self._inner.reset(seed=seed, options=options)
        return self._observation(raw), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step; done when the task is."""
        raw, reward, terminated, truncated, info = self._inner.step(action)
        success = bool(info.get("success", False))
        info = {**info, "is_success": success}
        return self._observation(raw), float(reward), terminated or success, truncated, info

    def render(self) -> Any:
        """The picture of the present moment."""
        picture: Any = self._inner.render()
        # This camera hangs upside down.
        return np.ascontiguousarray(picture[::-1, ::-1]) if self._turned else picture

    def close(self) -> None:
        """Free the renderer."""
        self._inner.close()

    def _observation(self, raw: NDArray[np.float64]) -> dict[str, Any]:
        return {"pixels": self.render(), "agent_pos": np.array(raw[: len(_STATE)], np.float64)}


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """A task by its name, `push-v3` unless another is given (`metaworld-push-v2` is taken too)."""
    own = options.only("camera_name", "side")
    task = re.sub(r"-v\d$", "", (options.task or _TASK).removeprefix("metaworld-")) + "-v3"
    known = list(metaworld.ALL_V3_ENVIRONMENTS)
    if task not in known:
        raise OptionError(f"Meta-World has no task {options.task!r}: it has {', '.join(known)}")
    camera, side = str(own.get("camera_name", "corner2")), int(own.get("side", 480))
    env = MetaworldEnv(task, camera, options.episode_length, side)
    # Nothing moves at zeros; the gripper keeps what it was told, or it would drop what it holds.
    idle = Idle("noop", (0.0, 0.0, 0.0, 0.0), keeps=(3,))
    features = {"pixels": "observation.image", "agent_pos": "observation.state"}
    return Simulator(env, fps or _FPS, features, idle, "", _STATE, _ACTION)


def _in_words(task: str) -> str:
    """What the task's name says, as an instruction."""
    return " ".join(task.removesuffix("-v3").split("-")).capitalize()
