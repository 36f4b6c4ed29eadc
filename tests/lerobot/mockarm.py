"""A robot of six joints for LeRobot, without hardware: what it sees is known, what it does written.

Registered as LeRobot's robot type `mockarm` where this module is imported.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

from tests.lerobot import checkpoints

PICTURES = 5


def joints(number: int) -> dict[str, float]:
    """The state of the number-th observation; no two are alike."""
    return {
        name: 4.0 * math.sin(0.37 * number + k) + 0.001 * number
        for k, name in enumerate(checkpoints.STATE)
    }


@cache
def picture(number: int) -> np.ndarray:
    """The picture of the number-th observation."""
    return checkpoints.picture(number % PICTURES)


@RobotConfig.register_subclass("mockarm")
@dataclass
class MockarmConfig(RobotConfig):
    log: str = ""


class Mockarm(Robot):
    """Writes a line of JSON for each observation and each action into the file `log`."""

    config_class = MockarmConfig
    name = "mockarm"

    def __init__(self, config: MockarmConfig) -> None:
        super().__init__(config)
        self._path = Path(config.log)
        self._number = -1
        self._connected = False

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return dict.fromkeys(checkpoints.STATE, float) | {checkpoints.CAMERA: checkpoints.SHAPE}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(checkpoints.STATE, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True
        self._write(connected=True)

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        self._number += 1
        self._write(observation=self._number)
        seen: dict[str, Any] = joints(self._number)
        return seen | {checkpoints.CAMERA: picture(self._number).copy()}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._write(action=[float(action[name]) for name in checkpoints.STATE])
        return action

    def disconnect(self) -> None:
        self._connected = False
        self._write(connected=False)

    def _write(self, **event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
