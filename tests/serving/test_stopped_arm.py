"""An arm that is stopped under a client: the maker's library against a controller, over TCP."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("mecademicpy")

from serving.bodies.driver import DriverBody
from serving.body import BodyError
from serving.kept_body import KeptBody
from tests.senders.fake_meca500 import ESTOP, HOME, FakeMeca500
from tests.support import wait_until

SWITCHED_ON = ("ActivateRobot", "Home", "ResumeMotion", "MoveJointsVel")


@pytest.fixture
def robot() -> Iterator[FakeMeca500]:
    made = FakeMeca500("11.3.2").start()
    yield made
    made.stop()


def body_of(robot: FakeMeca500, resumed: threading.Event | None) -> KeptBody:
    options = {"address": robot.host, "connect_s": 1.0, "stale_s": 0.6}
    return KeptBody(DriverBody("meca500", {"driver_options": options}, 30.0), 0.2, resumed)


def test_an_arm_whose_emergency_stop_was_taken_back_is_left_alone_until_leave_is_given(
    robot: FakeMeca500,
) -> None:
    resumed = threading.Event()
    body = body_of(robot, resumed)
    body.open()
    target = np.array(HOME) + 1.0
    try:
        body.move(target)
        wait_until(lambda: robot.count("MoveJointsVel") > 0, "the arm to be told to move")

        def said() -> str:
            try:
                body.read()
                body.move(target)
            except BodyError as error:
                return str(error)
            return ""

        robot.set_stop(ESTOP, 1)
        wait_until(lambda: "type resume" in said(), "the stop to be known")
        # Somebody takes it back and resets it, as the maker's manual says.
        robot.set_stop(ESTOP, 0)
        robot.told.clear()
        asked = 0

        def still_stopped() -> bool:
            nonlocal asked
            assert "emergency stop" in said()
            asked += 1
            return asked > 40

        wait_until(still_stopped, "the client to go on asking")
        assert not any(robot.count(name) for name in SWITCHED_ON)
        resumed.set()
        wait_until(lambda: not said(), "the arm to be used again", 20)
        wait_until(lambda: robot.count("MoveJointsVel") > 0, "the arm to be told to move")
    finally:
        body.close()


def test_without_the_latch_it_goes_on_by_itself(robot: FakeMeca500) -> None:
    body = body_of(robot, None)
    body.open()
    try:
        robot.set_stop(ESTOP, 1)

        def usable() -> bool:
            try:
                body.read()
            except BodyError:
                return False
            return True

        wait_until(lambda: not usable(), "the stop to be known")
        robot.set_stop(ESTOP, 0)
        wait_until(usable, "the arm to be used again", 20)
        assert robot.activated
    finally:
        body.close()
