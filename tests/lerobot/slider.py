"""A robot of somebody's own, as LeRobot's plugins bring them: two sliders, a base, a picture."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from lerobot.cameras import CameraConfig
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.robots import Robot, RobotConfig

__all__ = ["Slider", "SliderConfig"]


@RobotConfig.register_subclass("slider")
@dataclass
class SliderConfig(RobotConfig):
    """Options of the sliders."""

    port: str = ""
    base: bool = False
    eye: bool = False
    unmeasured: bool = False
    cameras: dict[str, CameraConfig] = field(default_factory=dict)


class Slider(Robot):
    """Goes where it is told at once; what it was told is kept in `told`."""

    config_class = SliderConfig
    name = "slider"
    made: ClassVar[list[Slider]] = []

    def __init__(self, config: SliderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = make_cameras_from_configs(config.cameras)
        self.at = {"left.pos": 1.5, "right.pos": -2.5}
        self.told: list[dict[str, float]] = []
        self.stuck = threading.Event()
        self.stuck.set()
        self.trouble: Exception | None = None
        self._connected = False
        self.calibrated = True
        Slider.made.append(self)

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        features: dict[str, Any] = dict.fromkeys(self.at, float)
        features |= {"base.vel": float} if self.config.base else {}
        features |= {"eye": (12, 16, 3)} if self.config.eye else {}
        return features | {name: (c.height, c.width, 3) for name, c in self.cameras.items()}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        features = dict.fromkeys(self.at, float) | ({"base.vel": float} if self.config.base else {})
        return features | ({"other.pos": float} if self.config.unmeasured else {})

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "calibrating asks at the terminal"
        self._connected = True
        for camera in self.cameras.values():
            camera.connect()

    @property
    def is_calibrated(self) -> bool:
        return self.calibrated

    def calibrate(self) -> None:
        raise AssertionError("nobody asked for that")

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        self.stuck.wait()
        if self.trouble is not None:
            raise self.trouble
        seen: dict[str, Any] = dict(self.at)
        seen |= {"base.vel": 0.25} if self.config.base else {}
        seen |= {"eye": np.full((12, 16, 3), len(self.told), np.uint8)} if self.config.eye else {}
        return seen | {name: camera.read_latest() for name, camera in self.cameras.items()}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.stuck.wait()
        self.told.append(dict(action))
        self.at |= {name: value for name, value in action.items() if name in self.at}
        return action

    def disconnect(self) -> None:
        self._connected = False
        for camera in self.cameras.values():
            camera.disconnect()
