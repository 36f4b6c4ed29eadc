"""A robot that goes away and comes back."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from serving.body import BodyError
from serving.kept_body import KeptBody
from tests.serving.test_control_loop import FakeBody
from tests.support import wait_until


class Flaky(FakeBody):
    """Opens when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.closed = 0
        self.may_open = threading.Event()
        self.open_fails = 0

    def open(self) -> None:
        if self.open_fails:
            self.open_fails -= 1
            raise BodyError("no answer")
        assert self.may_open.wait(30)
        self.opened += 1
        self.read_fails = ""

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def robot() -> Flaky:
    made = Flaky()
    made.may_open.set()
    return made


def test_one_lost_packet_is_no_loss(robot: Flaky) -> None:
    kept = KeptBody(robot, lost_after_s=1e9)
    kept.open()
    robot.read_fails = "no packet"
    with pytest.raises(BodyError, match="no packet"):
        kept.read()
    robot.read_fails = ""
    assert kept.read().values.shape == (3,)
    assert (robot.opened, robot.closed) == (1, 0)


def test_a_lost_robot_is_opened_again_and_not_used_meanwhile(robot: Flaky) -> None:
    kept = KeptBody(robot, lost_after_s=0.0)
    kept.open()
    robot.may_open.clear()
    robot.open_fails = 1
    robot.read_fails = "unplugged"
    with pytest.raises(BodyError, match="unplugged"):
        kept.read()
    for call in (kept.read, kept.hold, kept.seen, lambda: kept.move(np.zeros(3))):
        with pytest.raises(BodyError, match="unplugged; connecting to it again"):
            call()
    assert not robot.moves
    robot.may_open.set()
    wait_until(lambda: robot.opened == 2 and not _opening(kept), "the robot to be open")
    assert kept.read().values.shape == (3,)
    kept.move(np.ones(3))
    assert len(robot.moves) == 1
    assert robot.closed == 1


def test_it_can_be_closed_while_it_is_away(robot: Flaky) -> None:
    kept = KeptBody(robot, lost_after_s=0.0)
    kept.open()
    robot.open_fails = 10**6
    robot.read_fails = "unplugged"
    with pytest.raises(BodyError):
        kept.read()
    kept.close()
    assert not _opening(kept)
    assert robot.closed == 2  # by the thread, and at the end


def test_a_robot_that_opens_too_late_is_closed_again(
    robot: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.kept_body._CLOSED_IN_S", 0.01)
    kept = KeptBody(robot, lost_after_s=0.0)
    kept.open()
    robot.may_open.clear()
    robot.read_fails = "unplugged"
    with pytest.raises(BodyError):
        kept.read()
    kept.close()
    closed = robot.closed
    robot.may_open.set()
    wait_until(lambda: not _opening(kept), "the opening to end")
    assert robot.opened == 2
    assert robot.closed == closed + 1


def _opening(kept: KeptBody) -> bool:
    return kept._opening is not None and kept._opening.is_alive()
