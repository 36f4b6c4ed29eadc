"""Answers that servos give too late, which Feetech's SDK would take for the positions asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("scservo_sdk", reason="Feetech's SDK is not installed: make test-lerobot")

from senders.drivers import DriverError, RobotFault
from senders.robots.lerobot_arm import LeRobotArm
from tests.lerobot.feetech import GOAL, PRESENT, STATUS, Bus, _packet
from tests.support import wait_until


class LateBus(Bus):
    """Gives the answers to an earlier question once more, before those to the present one."""

    late: Callable[[int], bytes] | None = None
    late_at = PRESENT

    def _read(self, number: int, address: int, length: int) -> bytes:
        if self.late is not None and address == self.late_at:
            self._send(b"".join(_packet(one, self.late(one), 0) for one in self.servos))
            self.late = None
        return super()._read(number, address, length)

    def answer_unasked(self) -> None:
        """Answers to a question about errors, of which there are none."""
        self._send(b"".join(_packet(one, b"\0", 0) for one in self.servos))


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[LateBus]:
    made = LateBus()
    made.calibrate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def arm(bus: LateBus, tmp_path: Path) -> Iterator[LeRobotArm]:
    made = LeRobotArm(port=bus.path, id="arm", calibration_dir=str(tmp_path))
    made.open()
    made.read()  # looks at the errors, which it does once a second
    yield made
    made.close()


def stands(bus: Bus) -> list[float]:
    return [*(bus.degrees(n) for n in range(1, 6)), bus.percent()]


def goals(bus: Bus) -> list[int]:
    return [servo.word(GOAL) for servo in bus.servos.values()]


def test_what_came_too_late_is_not_taken_for_the_position(bus: LateBus, arm: LeRobotArm) -> None:
    for _ in range(5):
        bus.answer_unasked()
        assert arm.read().joints_deg == pytest.approx(stands(bus), abs=0.1)


def test_nothing_moves_on_answers_that_are_mixed_up(bus: LateBus, arm: LeRobotArm) -> None:
    """They come while the positions are waited for: each is read as far off the earth."""
    target = arm.read().joints_deg + np.array([1.0, 0, 0, 0, 0, 0])
    arm.move_joints(target)
    wait_until(lambda: np.allclose(arm.read().joints_deg, target, atol=0.15), "the target")
    before = goals(bus)
    calls: list[Callable[[], Any]] = [arm.read, arm.hold]
    for call in calls:
        bus.late = lambda _: b"\0"
        with pytest.raises(DriverError, match="mixed up"):
            call()
        assert goals(bus) == before
    arm.hold()
    assert goals(bus) == pytest.approx([servo.position for servo in bus.servos.values()], abs=2)


def test_a_position_that_came_too_late_is_no_error_of_a_servo(
    bus: LateBus, arm: LeRobotArm
) -> None:
    bus.late_at, bus.late = STATUS, lambda _: b"\x2c"

    def looked() -> bool:
        arm.read()  # looks at the errors once a second; one would be raised here
        return bus.late is None

    wait_until(looked, "the errors to be looked at")
    bus.servos[2].put(STATUS, 0x20, 1)
    with pytest.raises(RobotFault, match="shoulder_lift: overload"):
        wait_until(lambda: arm.read() is None, "the errors to be looked at")
