"""A simulated environment as the control loop's robot: one action executed at every step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.program import OptionError
from common.step_limiter import StepLimiter
from serving.body import BodyError, BodyState, Seen
from serving.environments.mapping import FeatureMap, Viewed, default_map
from serving.environments.values import Simulator
from serving.messages import MAX_VALUES

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Advanced", "EnvironmentBody"]

_MOST_REASON = 60


@dataclass(frozen=True, slots=True)
class Advanced:
    """What one step of the environment brought.

    Attributes:
        reward: of this step.
        ended: `terminated`, `truncated`, or empty while the episode goes on.
        success: whether the task is done; None where the environment does not say.
        reason: why it is not, where the environment says so (`info["reason"]`).
    """

    reward: float
    ended: str
    success: bool | None
    reason: str = ""


class EnvironmentBody:
    """Implements `serving.body.Body`; used by one thread, the one that renders.

    `move` and `hold` only say what is to be executed; `advance` executes it, once a control tick.
    While nothing is said that is the simulator's `idle` action. Actions are brought within the
    bounds of the action space by the control loop's limiter, and once more before each step.
    """

    def __init__(self, simulator: Simulator) -> None:
        """Use the environment; OptionError for an action space that no policy here can serve."""
        self._simulator, self._env = simulator, simulator.env
        self._discrete, self._low, self._high = _bounds(simulator)
        self._map: FeatureMap | None = None
        self._view: Viewed | BodyError = BodyError("the simulation was not begun")
        self._seen_at = 0.0
        self._target: NDArray[np.float64] | None = None
        self._executed: NDArray[np.float64] | None = None
        self._resting: NDArray[np.float64] | None = None
        self.state_names: tuple[str, ...] = ()
        self.action_names: tuple[str, ...] = ()
        self.cameras: dict[str, tuple[int, int, int]] = {}

    @property
    def rename(self) -> Mapping[str, str]:
        """What of the observation is called otherwise at the policy."""
        return {} if self._map is None else self._map.rename

    @property
    def named(self) -> bool:
        """Whether the names of the actions are not made up."""
        return bool(self._simulator.action_names)

    @property
    def task(self) -> str:
        """The instruction in words, as the environment has it for this episode."""
        said = getattr(self._env.unwrapped, "task_description", None)
        return said if isinstance(said, str) and said else self._simulator.task

    def begin(self, seed: int, number: int) -> None:
        """Reset for the episode of this `number`, from 0; BodyError where that fails.

        The first observation says what there is: OptionError where it cannot be used.
        """
        self._target = self._executed = self._resting = None
        try:
            observation, _ = self._env.reset(seed=seed, options={"episode": number})
        except Exception as error:  # whatever a simulator may raise
            raise BodyError(f"the environment cannot be reset: {_said(error)}") from None
        if self._map is None:
            self._look_at_first(observation)
        self._take(observation)

    def at(self, now: float) -> None:
        """What is seen is of this moment, in seconds of the client's clock."""
        self._seen_at = now

    def limiter(self, control_hz: float) -> StepLimiter:
        """The action space's bounds, and no limit on steps: how fast it moves is the simulator's.

        Unlike a robot, a simulator cannot be broken, and a limit would change what is measured.
        """
        endless = np.full(len(self._low), np.inf)
        return StepLimiter(self._low, self._high, endless, endless, np.zeros(len(endless), bool))

    def open(self) -> None:
        """Nothing: `begin` is what an episode starts with."""

    def read(self) -> BodyState:
        """The state that the last step led to; BodyError for an observation that is unsound."""
        if isinstance(self._view, BodyError):
            raise self._view
        return BodyState(self._view.state, self._seen_at)

    def seen(self) -> Mapping[str, Seen]:
        """The pictures of the same moment."""
        if isinstance(self._view, BodyError):
            return {}
        return {name: Seen(one, self._seen_at) for name, one in self._view.pictures.items()}

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """The newest `samples` of the environment's window; None without, or with fewer."""
        if isinstance(self._view, BodyError) or self._view.sensor is None:
            return None
        rows = self._view.sensor[-samples:]
        return rows if len(rows) == samples else None

    def move(self, target: NDArray[np.float64]) -> None:
        """Execute (A,) at the next `advance`."""
        self._target, self._resting = target, None

    def hold(self) -> None:
        """Execute the idle action from now on."""
        self._target = None

    def close(self) -> None:
        """Let go of the simulator."""
        with contextlib.suppress(Exception):
            self._env.close()

    def advance(self) -> Advanced:
        """One step of the environment; BodyError where it raises."""
        values = self._idle() if self._target is None else self._target
        self._executed = values = np.clip(values, self._low, self._high)
        try:
            observation, reward, terminated, truncated, info = self._env.step(self._action(values))
        except Exception as error:  # whatever a simulator may raise
            raise BodyError(f"the environment's step failed: {_said(error)}") from None
        self._take(observation)
        success = info.get("is_success", info.get("success"))
        ended = "terminated" if terminated else "truncated" if truncated else ""
        reward = float(reward)
        return Advanced(
            reward if np.isfinite(reward) else 0.0,
            ended,
            None if success is None else bool(success),
            _reason(info.get("reason")),
        )

    def picture(self) -> NDArray[np.uint8] | None:
        """What a video shows: the pictures as a grid, or what the environment renders."""
        view = self._view
        shown = list(view.pictures.values()) if isinstance(view, Viewed) else []
        if not shown:
            rendered: Any = self._env.render()
            usable = getattr(rendered, "ndim", 0) == 3 and rendered.dtype == np.uint8
            return np.array(rendered[..., :3]) if usable else None
        return _grid(shown)

    def _take(self, observation: Any) -> None:
        assert self._map is not None
        try:
            view = self._map.view(observation, self._env.render)
        except BodyError as error:
            self._view = error
            return
        shapes = {name: one.shape for name, one in view.pictures.items()}
        if len(view.state) != len(self.state_names) or shapes != self.cameras:
            self._view = BodyError("the observation has another shape than the first one had")
            return
        self._view = view

    def _look_at_first(self, observation: Any) -> None:
        simulator = self._simulator
        self._map = FeatureMap.of(simulator.features or default_map(observation))
        try:
            view = self._map.view(observation, self._env.render)
        except BodyError as error:
            raise OptionError(f"{error} (--env.features_map says what is where)") from None
        count, width = len(view.state), len(self._low)
        self.cameras = {name: (*one.shape[:2], 3) for name, one in view.pictures.items()}
        self.state_names = _checked("state", simulator.state_names, count)
        self.action_names = _checked("action", simulator.action_names, width)
        if simulator.idle.kind == "hold" and not set(self.action_names) <= set(self.state_names):
            raise OptionError(
                "--env.idle hold is for actions that are positions of the state's values, with the "
                "same names (--env.state_names, --env.action_names): use last or noop"
            )
        if len(simulator.idle.values) not in (0, width):
            raise OptionError(f"--env.idle must have {width} values, one for each of the action's")

    def _idle(self) -> NDArray[np.float64]:
        """(A,) what is executed while no action is queued."""
        rule, width = self._simulator.idle, len(self._low)
        calm = np.array(rule.values or np.zeros(width))
        if rule.kind == "last":
            return calm if self._executed is None else self._executed
        if rule.kind == "noop":
            for column in rule.keeps if self._executed is not None else ():
                calm[column] = self._executed[column]  # type: ignore[index]
            return calm
        if self._resting is None:
            self._resting = self._positions(calm)
        return self._resting

    def _positions(self, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
        """(A,) where the robot is; what was executed last, where that is not known."""
        if isinstance(self._view, BodyError):
            return otherwise if self._executed is None else self._executed
        places = [self.state_names.index(name) for name in self.action_names]
        return self._view.state[places]

    def _action(self, values: NDArray[np.float64]) -> Any:
        """As the environment's action space has it."""
        space: Any = self._env.action_space
        if self._discrete:
            return int(np.rint(values[0]))
        return values.reshape(space.shape).astype(space.dtype)


def _grid(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures in rows of three at most (two where there are two or four), in cells of one size."""
    columns = 2 if len(pictures) in (2, 4) else min(len(pictures), 3)
    rows = -(-len(pictures) // columns)
    height, width = (max(one.shape[axis] for one in pictures) for axis in (0, 1))
    grid = np.zeros((rows * height, columns * width, 3), np.uint8)
    for place, one in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        grid[top : top + one.shape[0], left : left + one.shape[1]] = one
    return grid


def _bounds(simulator: Simulator) -> tuple[bool, NDArray[np.float64], NDArray[np.float64]]:
    """Whether actions are whole numbers, and the lowest and highest ones (A,)."""
    from gymnasium import spaces

    space: gymnasium.Space[Any] = simulator.env.action_space
    if isinstance(space, spaces.Discrete):
        first = float(space.start)
        return True, np.array([first]), np.array([first + float(space.n) - 1.0])
    if not isinstance(space, spaces.Box) or not 1 <= int(np.prod(space.shape)) <= MAX_VALUES:
        raise OptionError(f"actions in {space} cannot be served: Box and Discrete can")
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    if simulator.bounds is not None:
        low, high = (np.array(side, np.float64) for side in simulator.bounds)
    return False, low.astype(np.float64), high.astype(np.float64)


def _checked(what: str, names: tuple[str, ...], count: int) -> tuple[str, ...]:
    if not names:
        return tuple(f"{what}_{k}" for k in range(count))
    if len(names) != count or len(set(names)) != count:
        raise OptionError(
            f"--env.{what}_names: {count} different names are needed, not {len(names)}"
        )
    return names


def _reason(value: object) -> str:
    return " ".join(value.split())[:_MOST_REASON] if isinstance(value, str) else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
