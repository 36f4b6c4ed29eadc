"""A robot that goes away and comes back."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from serving.body import BodyError, BodyFault, BodyState
from serving.kept_body import KeptBody
from tests.serving.test_control_loop import FakeBody
from tests.support import wait_until


class Flaky(FakeBody):
    """Opens when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.closed = self.tried = 0
        self.may_open = threading.Event()
        self.open_fails = 0
        self.fault = ""
        self.looks = True

    def open(self) -> None:
        self.tried += 1
        if self.open_fails:
            self.open_fails -= 1
            raise BodyError("no answer")
        assert self.may_open.wait(30)
        if self.fault:
            raise BodyFault(self.fault)
        self.opened += 1
        self.read_fails = ""

    def read(self) -> BodyState:
        # Most drivers look at errors now and then, not at every reading.
        if self.fault and self.looks:
            raise BodyFault(self.fault)
        return super().read()

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


def test_a_robot_that_is_read_and_refuses_to_move_is_opened_again(
    robot: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("serving.kept_body.time", clock)
    kept = KeptBody(robot, lost_after_s=1.0)
    kept.open()
    robot.may_open.clear()
    for at, refused in ((0.0, True), (0.9, True), (1.0, False), (1.5, True), (2.4, True)):
        now = at
        assert kept.read().values.shape == (3,)
        robot.move_fails = "the drive is off" if refused else ""
        with (
            pytest.raises(BodyError, match="the drive is off")
            if refused
            else contextlib.nullcontext()
        ):
            kept.move(np.zeros(3))
        assert not _opening(kept), "it took a move in between"
    kept.read()
    now, robot.move_fails = 2.6, "the drive is off"
    with pytest.raises(BodyError, match=r"^the drive is off$"):
        kept.move(np.zeros(3))
    with pytest.raises(BodyError, match="the drive is off; connecting to it again"):
        kept.read()
    robot.move_fails = ""
    robot.may_open.set()
    back(kept)
    kept.move(np.zeros(3))
    assert (robot.opened, robot.closed) == (2, 1)
    # The second begins anew.
    now, robot.move_fails = 3.0, "the drive is off"
    with pytest.raises(BodyError):
        kept.move(np.zeros(3))
    assert not _opening(kept)


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


def test_a_robot_that_was_stopped_waits_for_leave(robot: Flaky) -> None:
    resumed = threading.Event()
    resumed.set()  # said of something before
    kept = KeptBody(robot, lost_after_s=0.0, resumed=resumed)
    kept.open()
    robot.fault = "emergency stop"
    with pytest.raises(BodyError, match=r"^emergency stop$"):
        kept.read()
    robot.fault = ""  # the button is out again
    for call in (kept.read, lambda: kept.move(np.zeros(3)), kept.read):
        with pytest.raises(BodyError, match="emergency stop; type resume once it is safe"):
            call()
    assert not robot.moves
    assert (robot.opened, robot.closed) == (1, 0)  # nor is it switched on again
    kept.hold()  # what is safe is done
    assert robot.holds == 1
    resumed.set()
    back(kept)
    assert (robot.opened, robot.closed) == (2, 1)
    kept.move(np.ones(3))
    # The same leave is none for the next stop.
    robot.fault = "emergency stop"
    for _ in range(2):
        with pytest.raises(BodyError):
            kept.read()
    robot.fault = ""
    with pytest.raises(BodyError, match="type resume"):
        kept.read()


def test_leave_that_is_given_too_early_does_not_help(robot: Flaky) -> None:
    resumed = threading.Event()
    kept = KeptBody(robot, lost_after_s=0.0, resumed=resumed)
    kept.open()
    robot.fault = "emergency stop"
    with pytest.raises(BodyFault):
        kept.read()
    resumed.set()
    with contextlib.suppress(BodyError):  # it is tried, and is still stopped
        kept.read()
    wait_until(lambda: not _opening(kept), "the attempt to end")
    robot.fault = ""
    for _ in range(3):
        with pytest.raises(BodyError, match="type resume"):
            kept.read()
    assert (robot.opened, robot.closed) == (1, 1)
    resumed.set()
    back(kept)


def test_a_robot_that_comes_back_stopped_waits_for_leave(robot: Flaky) -> None:
    resumed = threading.Event()
    kept = KeptBody(robot, lost_after_s=0.0, resumed=resumed)
    kept.open()
    robot.may_open.clear()
    robot.read_fails, robot.fault = "unplugged", ""
    with pytest.raises(BodyError, match="unplugged"):
        kept.read()
    robot.fault = "in error"
    robot.may_open.set()
    wait_until(lambda: not _opening(kept), "the attempt to end")
    with pytest.raises(BodyError, match="in error; type resume"):
        kept.read()
    robot.fault = ""
    resumed.set()
    back(kept)
    assert robot.opened == 2


@pytest.mark.parametrize("fails", ["read", "move"])
def test_a_fault_in_either_call_is_a_stop(robot: Flaky, fails: str) -> None:
    kept = KeptBody(robot, lost_after_s=1e9, resumed=threading.Event())
    kept.open()
    if fails == "move":
        robot.move = refuse  # type: ignore[method-assign]
        with pytest.raises(BodyFault):
            kept.move(np.zeros(3))
    else:
        robot.fault = "in error"
        with pytest.raises(BodyFault):
            kept.read()
        robot.fault = ""
    with pytest.raises(BodyError, match="type resume"):
        kept.read()


@pytest.mark.parametrize("fails", ["read", "move"])
def test_without_a_latch_a_fault_lasts_until_the_robot_opens_without_it(
    robot: Flaky, fails: str
) -> None:
    kept = KeptBody(robot, lost_after_s=0.05)
    kept.open()
    robot.fault = "elbow_flex: overload"
    if fails == "move":
        robot.looks = False
        robot.move = refuse  # type: ignore[method-assign]
        with pytest.raises(BodyFault):
            kept.move(np.zeros(3))
        del robot.move
    else:
        with pytest.raises(BodyFault):
            kept.read()
        robot.looks = False  # the next readings would say nothing of it
    tried = robot.tried

    def tried_again() -> bool:
        for call in (kept.read, lambda: kept.move(np.zeros(3))):
            with pytest.raises(BodyError, match="overload; connecting to it again"):
                call()
        return robot.tried > tried + 1

    wait_until(tried_again, "two tries to open it")
    assert not robot.moves
    robot.fault = ""
    back(kept)
    assert robot.opened == 2


def test_without_a_latch_a_robot_in_error_is_not_opened_again_at_once(robot: Flaky) -> None:
    kept = KeptBody(robot, lost_after_s=1e6)
    kept.open()
    robot.fault = "in error"
    with pytest.raises(BodyFault):
        kept.read()
    robot.fault = ""
    wait_until(lambda: robot.closed == 1, "the robot to be let go of")
    kept.close()
    assert not _opening(kept)
    assert robot.tried == 1


def refuse(_: np.ndarray) -> None:
    raise BodyFault("elbow_flex: overload")


def back(kept: KeptBody) -> None:
    """Wait for the robot to be there again."""

    def reads() -> bool:
        with contextlib.suppress(BodyError):
            return kept.read().values.shape == (3,)
        return False

    wait_until(reads, "the robot to be read again")


def _opening(kept: KeptBody) -> bool:
    return kept._opening is not None and kept._opening.is_alive()
