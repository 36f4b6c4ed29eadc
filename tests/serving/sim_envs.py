"""Small environments for the simulation client's tests, registered where this is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

__all__ = ["LINE", "LineEnv"]

LINE = "dualrate-tests/Line-v0"


class LineEnv(gymnasium.Env):
    """Two sliders that are at once where they are sent; each action is written into `log`.

    Slider 0 starts at the seed. An episode is done after `steps`, successfully if the seed is even.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        steps: int = 20,
        log: str = "",
        blind_at: int = -1,
        breaks_at: int = -1,
        spread: float = 100.0,
    ) -> None:
        self.render_mode, self._steps = render_mode, steps
        self._blind_at, self._breaks_at = blind_at, breaks_at
        self._log = Path(log) if log else None
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict(
                    {"agentview_image": spaces.Box(0, 255, (24, 32, 3), np.uint8)}
                ),
                "agent_pos": spaces.Box(-1e3, 1e3, (2,), np.float64),
            }
        )
        self.action_space = spaces.Box(-spread, spread, (2,), np.float32)
        self.task_description = "slide"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._seed, self._done = seed or 0, 0
        self._at = np.array([float(self._seed), 0.0])
        self._write({"seed": self._seed})
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        if self._done == self._breaks_at:
            raise RuntimeError("a gear is broken")
        self._write({"action": [float(value) for value in action]})
        self._at = np.array(action, np.float64)
        self._done += 1
        over = self._done >= self._steps
        success = over and self._seed % 2 == 0
        return self._observation(), 0.5, over, False, {"is_success": success}

    def render(self) -> np.ndarray:
        return np.full((24, 32, 3), 90, np.uint8)

    def _observation(self) -> dict[str, Any]:
        at = self._at.copy()
        if self._done == self._blind_at:
            at[0] = np.nan
        return {"pixels": {"agentview_image": self.render()}, "agent_pos": at}

    def _write(self, told: dict[str, Any]) -> None:
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps(told) + "\n")


gymnasium.register(LINE, entry_point=LineEnv)
