"""Servos that report an error, through the bodies of the client: nothing moves any more."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("scservo_sdk", reason="Feetech's SDK is not installed: make test-lerobot")

from serving.bodies import make
from serving.bodies.driver import ArmBody
from serving.bodies.lerobot_body import LeRobotBody
from serving.body import BodyError
from serving.kept_body import KeptBody
from tests.lerobot.feetech import GOAL, STATUS, SYNC_READ, Bus, open_patiently
from tests.support import wait_until

OVERLOAD = 32


class Arms:
    """One or two arms, each on a bus, and the options with which the client makes them."""

    def __init__(self, count: int, folder: Path) -> None:
        self.buses = [Bus() for _ in range(count)]
        self.options: dict[str, Any] = {"id": "arm", "calibration_dir": str(folder)}
        if count == 1:
            self.options |= {"type": "so101_follower", "port": self.buses[0].path}
            self.buses[0].calibrate(folder)
            return
        self.options["type"] = "bi_so_follower"
        for side, bus in zip(("left", "right"), self.buses, strict=True):
            self.options[f"{side}_arm_config"] = {"port": bus.path}
            bus.calibrate(folder, f"arm_{side}")

    @property
    def stand(self) -> bool:
        """Whether all servos are at their targets."""
        servos = [servo for bus in self.buses for servo in bus.servos.values()]
        for servo in servos:
            servo.advance()
        return all(abs(servo.word(GOAL) - servo.position) < 1 for servo in servos)

    @property
    def goals(self) -> list[int]:
        """The targets of all servos."""
        return [servo.word(GOAL) for bus in self.buses for servo in bus.servos.values()]


@pytest.fixture(params=[1, 2], ids=["one arm", "two arms"])
def arms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arms]:
    made = Arms(request.param, tmp_path)
    yield made
    for bus in made.buses:
        bus.close()


@contextlib.contextmanager
def opened(arms: Arms, resumed: threading.Event | None) -> Iterator[KeptBody]:
    inner = make(arms.options)
    assert isinstance(inner, ArmBody if len(arms.buses) == 1 else LeRobotBody)
    body = KeptBody(inner, resumed=resumed)

    open_patiently(body)
    try:
        yield body
    finally:
        body.close()


def said(body: KeptBody, step: float = 1.0) -> str:
    """What a control tick meets that moves the first joint by `step` degrees; empty: it moved."""
    try:
        target = body.read().values
        target[0] += step
        body.move(target)
    except BodyError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("latch", [True, False])
def test_an_arm_whose_servo_is_in_error_does_not_move_any_more(arms: Arms, latch: bool) -> None:
    """LeRobot reads positions without looking: the ticks after the one that looked hold too."""
    resumed = threading.Event() if latch else None
    with opened(arms, resumed) as body:
        wait_until(lambda: not said(body), "the arm to move")
        bus = arms.buses[-1]
        bus.servos[2].memory[STATUS] = OVERLOAD
        wait_until(lambda: "shoulder_lift: overload" in said(body), "the error to be seen")
        if latch:
            body.hold()
        wanted = "overload.*type resume once it is safe" if latch else "overload.*connecting to it"
        ticks = 0

        def holds() -> bool:
            nonlocal ticks
            assert re.search(wanted, words := said(body)), words
            ticks += 1
            return ticks > 40 and arms.stand

        wait_until(holds, "the arm to stand, and many ticks")
        goals, asked, ticks = arms.goals, bus.asked[SYNC_READ], 0
        wait_until(lambda: holds() and (latch or bus.asked[SYNC_READ] > asked), "another look")
        assert arms.goals == pytest.approx(goals, abs=1)
        assert bus.torque == [1] * 6, "it would fall"
        bus.servos[2].memory[STATUS] = 0
        if resumed is not None:
            assert "type resume" in said(body)
            resumed.set()
        wait_until(lambda: not said(body), "the arm to move again")
