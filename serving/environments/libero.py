"""LIBERO's suites of tasks (hf-libero), seen as LeRobot's policies for it see them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml
from gymnasium import spaces
from numpy.typing import NDArray

from common.program import OptionError
from serving.environments.values import EnvironmentOptions, Idle, Simulator

__all__ = ["LiberoEnv", "make"]

_FPS = 20.0  # of its controller
_SUITE = "libero_10"
_CAMERAS = {"agentview_image": "image", "robot0_eye_in_hand_image": "image2"}
_STATE = ("eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz", "finger_1", "finger_2")
_ACTION = ("eef_dx", "eef_dy", "eef_dz", "eef_drx", "eef_dry", "eef_drz", "gripper_command")
# Steps of an episode: somewhat more than the longest demonstration of each suite has.
_LONGEST = {"libero_spatial": 280, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
_LONGEST |= {"libero_90": 400}
_OPEN = (0.0,) * 6 + (-1.0,)
_SETTLE_STEPS = 10
"""Objects are put a little above where they lie, and fall for a moment."""


class LiberoEnv(gymnasium.Env[dict[str, Any], NDArray[Any]]):
    """The tasks of a suite, one after the other: episode n has task n modulo their number.

    Observations: `pixels`, the pictures of both cameras the right way up, and `agent_pos` (8,): the
    hand's place in metres, its rotation as an axis times an angle, and the two fingers.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(_FPS)}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, suite: Any, tasks: Sequence[int], side: int, longest: int) -> None:
        """Show tasks of `suite` by their numbers, in pictures of `side` pixels."""
        self._suite, self._tasks, self._side, self._longest = suite, tuple(tasks), side, longest
        self._task = -1
        self._inner: Any = None
        self._starts: NDArray[np.float64] | None = None
        self._episode = self._steps = 0
        self.task_description = ""
        picture = spaces.Box(0, 255, (side, side, 3), np.uint8)
        endless = spaces.Box(-np.inf, np.inf, (len(_STATE),), np.float64)
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict(dict.fromkeys(_CAMERAS, picture)), "agent_pos": endless}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (len(_ACTION),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next episode, or that of the number `options["episode"]`."""
        super().reset(seed=seed)
        number = int((options or {}).get("episode", self._episode))
        self._episode, self._steps = number + 1, 0
        self._show(self._tasks[number % len(self._tasks)])
        self._inner.seed(0 if seed is None else seed)
        raw = self._inner.reset()
        if self._starts is not None:
            start = self._starts[number // len(self._tasks) % len(self._starts)]
            raw = self._inner.set_init_state(start)
        for _ in range(_SETTLE_STEPS):
            raw, *_ = self._inner.step(list(_OPEN))
        return self._observation(raw), {"is_success": False}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step; done when the task is."""
        raw, reward, done, info = self._inner.step(np.asarray(action, np.float64))
        self._steps += 1
        success = bool(self._inner.check_success())
        over = self._steps >= self._longest
        told = {**info, "is_success": success, "task": self.task_description}
        return self._observation(raw), float(reward), bool(done) or success, over, told

    def close(self) -> None:
        """Free the simulation."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _show(self, task: int) -> None:
        if task == self._task and self._inner is not None:
            return
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        self.close()
        told = self._suite.get_task(task)
        self._task, self.task_description = task, str(told.language)
        file = Path(get_libero_path("bddl_files")) / told.problem_folder / told.bddl_file
        starts = Path(get_libero_path("init_states")) / told.problem_folder / told.init_states_file
        self._starts = _starting_states(starts)
        self._inner = OffScreenRenderEnv(
            bddl_file_name=str(file), camera_heights=self._side, camera_widths=self._side
        )

    @staticmethod
    def _observation(raw: Mapping[str, Any]) -> dict[str, Any]:
        # robosuite draws with the first row lowest, and the data sets turn pictures right round.
        pixels = {name: np.ascontiguousarray(raw[name][::-1, ::-1]) for name in _CAMERAS}
        parts = raw["robot0_eef_pos"], _turn(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"]
        return {"pixels": pixels, "agent_pos": np.concatenate(parts).astype(np.float64)}


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """A suite, `libero_10` unless another is given; `--env.task_ids` picks some of its tasks."""
    own = options.only("task_ids", "side")
    _configure()
    from libero.libero import benchmark, get_assets_path

    assets = Path(get_assets_path())
    if not assets.is_dir():
        raise OptionError(
            f"LIBERO's assets are not there and could not be downloaded: put them into {assets} "
            "(libero/libero/assets of its repository)"
        )
    suites = benchmark.get_benchmark_dict()
    name = options.task or _SUITE
    if name not in suites:
        raise OptionError(f"LIBERO has no suite {name!r}: it has {', '.join(sorted(suites))}")
    suite = suites[name]()
    count = int(suite.n_tasks)
    ids = own.get("task_ids", list(range(count)))
    if (
        not isinstance(ids, list)
        or not ids
        or not all(isinstance(one, int) and 0 <= one < count for one in ids)
    ):
        raise OptionError(f"--env.task_ids must be numbers from 0 to {count - 1}, as [0, 1]")
    longest = options.episode_length or _LONGEST.get(name, 500)
    env = LiberoEnv(suite, ids, int(own.get("side", 256)), longest)
    features = {f"pixels/{key}": f"observation.images.{to}" for key, to in _CAMERAS.items()}
    features["agent_pos"] = "observation.state"
    # Nothing moves at zeros; the gripper keeps what it was told, and begins open.
    return Simulator(env, fps or _FPS, features, Idle("noop", _OPEN, (6,)), "", _STATE, _ACTION)


def _configure() -> None:
    """Write LIBERO's file of paths where there is none: importing it would ask for them."""
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser()
    file, found = folder / "config.yaml", importlib.util.find_spec("libero")
    if file.exists() or found is None or not found.submodule_search_locations:
        return
    root = Path(next(iter(found.submodule_search_locations))) / "libero"
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "assets": root / "assets"}
    paths |= {"init_states": root / "init_files", "datasets": root.parent / "datasets"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    except OSError as error:
        raise OptionError(f"{file} cannot be written: {error.strerror}") from None


def _starting_states(file: Path) -> NDArray[np.float64] | None:
    """(N, S) states that episodes begin with, read as numbers only; None where there are none."""
    if not file.exists():
        return None
    import torch

    # The arrays were saved with torch as they are; nothing but arrays is let through.
    kinds: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float64)), *_RECONSTRUCT]
    with torch.serialization.safe_globals(kinds):
        states = torch.load(file, weights_only=True)
    return np.asarray(states, np.float64)


def _reconstructors() -> list[Any]:
    """NumPy's function that arrays are put together with, under its old name and its new one."""
    new = np.array(0.0).__reduce__()[0]
    return [new, (new, "numpy.core.multiarray._reconstruct")]


_RECONSTRUCT = _reconstructors()


def _turn(quaternion: Any) -> NDArray[np.float64]:
    """A rotation (x, y, z, w) as its axis times its angle (3,) in radians."""
    x, y, z, w = (float(value) for value in quaternion)
    w = min(max(w, -1.0), 1.0)
    length = math.sqrt(1.0 - w * w)
    if length < 1e-9:
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * math.acos(w) / length)
