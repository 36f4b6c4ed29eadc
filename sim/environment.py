"""The insertion rig as a gymnasium environment, in simulated time.

    import gymnasium, sim.environment
    env = gymnasium.make("dualrate/Insertion-v0", control_hz=10)

An observation is a map: `pixels`, a picture (height, width, 3) uint8 RGB of each view; `agent_pos`,
the joints (6,) in degrees; `sensor`, the newest 65 samples (65, 1026) float32 of the force in
newtons and an A-scan. An action is joint angles (6,) in degrees, or changes of them; the arm is on
its way there in a straight line for the whole control period. What the task is, and when it is
done, is `sim.task`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "the rig as an environment needs gymnasium: pip install '.[gym,sim]'",
        name="gymnasium",
    ) from None

from common.kinematics import MECA500
from sim.ascan import SAMPLES, synthesize
from sim.layout import RigConfig
from sim.model import VIEWS
from sim.rendering import RigRenderer
from sim.rig import InsertionRig, Reading
from sim.task import DISTANCE_MM, TASK, Judge, Verdict

__all__ = ["ENVIRONMENT_ID", "WINDOW", "InsertionEnv"]

ENVIRONMENT_ID = "dualrate/Insertion-v0"
WINDOW = 65
"""Samples of the sensor in an observation: 0.1 s at 650 Hz, as the policies were trained."""

Space = Literal["joint_absolute", "joint_delta"]

_SAMPLE_EVERY = 2
"""The force sensor samples at every second step of the physics, as in `sim/rig_server.py`."""
_JUDGE_EVERY = 10
"""Steps of the physics between two looks of the judge: 130 Hz, who wants 50 Hz at least."""
_FORCE_NOISE_N = 0.003
_MOST_FORCE_N = 1000.0
_WARM_UP_S = 0.1
"""The arm waits at home for so long at first, so that the first window is full of real samples."""
_SHAPING = 0.1
_NEAR_MM = 5.0
_JOINTS = 6

Observation = dict[str, Any]


class InsertionEnv(gymnasium.Env[Observation, NDArray[Any]]):
    """Bring the needle's tip into the port and keep its distance to the moving tissue.

    Reward: 1 at success, and over the whole episode at most 0.1 more for coming near: each step
    gives the change of 0.1 · exp(-d / 5 mm), d being from the tip to where it should be. That is
    shaping by a potential (Ng, Harada, Russell 1999), which does not change what is best to do.

    An episode ends with success or with too much force (`terminated`), or after `episode_s`
    (`truncated`). `info` has `is_success`, `reason` (why it is none), `held_s`, `rms_mm` (None
    while there is none), `lateral_mm`, `force_n`, `distance_mm`, `depth_mm` and `time_s`.

    `reset(seed=n)` places the port and the tissue's phase as every other program of the rig does
    for that seed; without one, a seed is drawn. For one thread: the pictures are OpenGL's.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 — gymnasium's

    def __init__(
        self,
        *,
        control_hz: float = 10.0,
        action_space_name: Space = "joint_absolute",
        gripper: bool = False,
        episode_s: float = 15.0,
        views: Sequence[str] = VIEWS,
        width: int = 640,
        height: int = 360,
        render_mode: str | None = "rgb_array",
        rig: RigConfig | dict[str, Any] | None = None,
    ) -> None:
        """Build the rig; ValueError for options that cannot be used.

        Args:
            control_hz: actions a second, 10 to 100.
            action_space_name: `joint_absolute`, or `joint_delta` for changes over one action, from
                where the arm is.
            gripper: take a seventh action value and do nothing with it, as the rig has none.
            episode_s: time limit.
            views: which cameras to render; none for an observation without `pixels`.
            width: of the pictures.
            height: of the pictures.
            render_mode: `rgb_array`: `render()` gives the first view.
            rig: the rig's own options, a RigConfig or a map.
        """
        if not 10.0 <= control_hz <= 100.0:
            raise ValueError(f"control_hz must be from 10 to 100, not {control_hz}")
        if action_space_name not in ("joint_absolute", "joint_delta"):
            raise ValueError(
                f"action_space_name is joint_absolute or joint_delta, not {action_space_name!r}"
            )
        if not 0.1 <= episode_s <= 3600.0:
            raise ValueError(f"episode_s must be from 0.1 to 3600, not {episode_s}")
        if len(set(views)) != len(views) or not set(views) <= set(VIEWS):
            raise ValueError(f"views are some of {', '.join(VIEWS)}, not {', '.join(views)}")
        if not (16 <= width <= 4096 and 16 <= height <= 4096):
            raise ValueError(f"pictures of {width}x{height} cannot be rendered")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is rgb_array or none, not {render_mode!r}")
        config = rig if isinstance(rig, RigConfig) else RigConfig.from_dict(rig or {})
        self.metadata = self.metadata | {"render_fps": control_hz}
        self.render_mode, self.task_description = render_mode, TASK
        self._hz, self._limit_s = float(control_hz), float(episode_s)
        self._views, self._size = tuple(views), (width, height)
        self._delta, self._gripper = action_space_name == "joint_delta", gripper
        self._rig = InsertionRig(config)
        self._renderer: RigRenderer | None = None
        self._near = 0.0
        self._begin(0)
        self.observation_space = self._observation_space()
        self.action_space = self._action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Another episode: the arm at home, the port where the seed puts it."""
        super().reset(seed=seed)
        self._begin(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._observation(), self._info(self._judge.verdict(self._rig.time_s))

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Go to where the action says by the end of a control period; ValueError for no action.

        As the robot sender does between the rows of a chunk, the target moves in a straight line:
        an arm that jumps and then stands, ten times a second, follows no tissue to 0.5 mm.
        """
        values = np.asarray(action, np.float64)
        if values.shape != self.action_space.shape or not np.isfinite(values).all():
            raise ValueError(f"an action is {self.action_space.shape} finite numbers")
        joints = values[:_JOINTS] + (self._rig.joints_deg if self._delta else 0.0)
        self._steps += 1
        verdict = self._advance(self._steps / self._hz, joints)
        nearness = self._nearness()
        reward = _SHAPING * (nearness - self._near) + (1.0 if verdict.success else 0.0)
        self._near = nearness
        terminated = verdict.success or verdict.reason == "force"
        truncated = not terminated and self._steps / self._hz >= self._limit_s - 1e-9
        return self._observation(), reward, terminated, truncated, self._info(verdict)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The first view (or View1, where none is observed), (height, width, 3) RGB."""
        if self.render_mode is None:
            return None
        return self._pictures(self._views[:1] or VIEWS[:1])[(self._views or VIEWS)[0]]

    def close(self) -> None:
        """Free what renders; safe to call twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    @property
    def joints_deg(self) -> NDArray[np.float64]:
        """(6,) where the arm is."""
        return self._rig.joints_deg

    def _begin(self, seed: int) -> None:
        self._rig.reset(seed)
        self._judge = Judge()
        self._sensor = _Sensor(np.random.default_rng((seed, 1)))
        self._steps = self._substep = 0
        self._pushed_n = 0.0
        self._advance(0.0)
        self._near = self._nearness()

    def _advance(self, control_s: float, joints: NDArray[np.float64] | None = None) -> Verdict:
        """Run the physics up to so long after the episode's first observation.

        The target goes on a line from where the arm's controller is by now to `joints` (6,).
        """
        rig = self._rig
        begin, end = self._substep, round((_WARM_UP_S + control_s) * rig.config.physics_hz)
        # Where the controller is, not the last target: a slow arm may not have got there.
        start = np.degrees(rig.data.ctrl[:_JOINTS])
        readings: list[Reading] = []
        while self._substep < end:
            span = min(_SAMPLE_EVERY - self._substep % _SAMPLE_EVERY, end - self._substep)
            if joints is not None:
                part = (self._substep + span - begin) / (end - begin)
                rig.command_joints(start + part * (joints - start))
            rig.step(span)
            self._substep += span
            if self._substep % _SAMPLE_EVERY == 0:
                readings.append(reading := rig.read())
                self._pushed_n = max(self._pushed_n, abs(reading.force_n))
                if self._substep % _JUDGE_EVERY == 0:
                    # The judge sees the peak of the force, whenever it was.
                    self._judge.see(dataclasses.replace(reading, force_n=self._pushed_n))
                    self._pushed_n = 0.0
        self._sensor.add(readings)
        return self._judge.verdict(rig.time_s)

    def _nearness(self) -> float:
        """1 where the tip should be, falling to 0 with the distance from there."""
        reading = self._rig.read()
        off_mm = math.hypot(reading.lateral_mm, reading.distance_mm - DISTANCE_MM)
        return math.exp(-off_mm / _NEAR_MM)

    def _observation(self) -> Observation:
        seen: Observation = {
            "agent_pos": self._rig.joints_deg.astype(np.float32),
            "sensor": self._sensor.window(),
        }
        if self._views:
            seen["pixels"] = self._pictures(self._views)
        return seen

    def _pictures(self, views: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        if self._renderer is None:
            self._renderer = RigRenderer(self._rig.model, *self._size)
        drawn = self._renderer.render(self._rig.data, views)
        return {view: np.ascontiguousarray(picture[..., ::-1]) for view, picture in drawn.items()}

    def _info(self, verdict: Verdict) -> dict[str, Any]:
        reading = self._rig.read()
        return {
            "is_success": verdict.success,
            "reason": verdict.reason,
            "held_s": verdict.held_s,
            "rms_mm": None if math.isnan(verdict.rms_mm) else verdict.rms_mm,
            "lateral_mm": reading.lateral_mm,
            "force_n": verdict.force_n,
            "distance_mm": reading.distance_mm,
            "depth_mm": reading.depth_mm,
            "time_s": reading.time_s,
        }

    def _observation_space(self) -> spaces.Dict:
        # A joint may be a little beyond its range for a moment: the position loop swings.
        low = np.array(MECA500.joint_min_deg, np.float32) - 5.0
        high = np.array(MECA500.joint_max_deg, np.float32) + 5.0
        least, most = np.zeros((WINDOW, 1 + SAMPLES)), np.ones((WINDOW, 1 + SAMPLES))
        least[:, 0], most[:, 0] = -_MOST_FORCE_N, _MOST_FORCE_N
        inner: dict[str, spaces.Space[Any]] = {
            "agent_pos": spaces.Box(low, high, dtype=np.float32),
            "sensor": spaces.Box(
                least.astype(np.float32), most.astype(np.float32), dtype=np.float32
            ),
        }
        if self._views:
            width, height = self._size
            picture = spaces.Box(0, 255, (height, width, 3), np.uint8)
            inner["pixels"] = spaces.Dict(dict.fromkeys(self._views, picture))
        return spaces.Dict(inner)

    def _action_space(self) -> spaces.Box:
        low, high = np.array(MECA500.joint_min_deg), np.array(MECA500.joint_max_deg)
        if self._delta:
            # No further than the arm goes in one control period.
            high = np.array(MECA500.joint_speed_deg_s) / self._hz
            high *= self._rig.config.joint_speed_share
            low = -high
        if self._gripper:
            low, high = np.append(low, -1.0), np.append(high, 1.0)
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


class _Sensor:
    """The newest samples of the force and of the A-scan, with the sensor's noise and speckle."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rows = np.zeros((WINDOW, 1 + SAMPLES), np.float32)

    def add(self, readings: Sequence[Reading]) -> None:
        """Take what came since the last control step, oldest first."""
        newest = readings[-WINDOW:]
        if not newest:
            return
        rows = np.empty((len(newest), 1 + SAMPLES), np.float32)
        noise = self._rng.normal(0.0, _FORCE_NOISE_N, len(newest))
        force_n = [reading.force_n for reading in newest] + noise
        rows[:, 0] = np.clip(force_n, -_MOST_FORCE_N, _MOST_FORCE_N)
        rows[:, 1:] = synthesize([reading.distance_mm for reading in newest], self._rng)
        self._rows = np.concatenate([self._rows[len(newest) :], rows])

    def window(self) -> NDArray[np.float32]:
        """(65, 1026), oldest first, the caller's own."""
        return self._rows.copy()


if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(ENVIRONMENT_ID, entry_point="sim.environment:InsertionEnv")
