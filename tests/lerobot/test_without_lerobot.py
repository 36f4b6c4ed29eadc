"""What the arm's driver is made of and LeRobot is not needed for."""

from __future__ import annotations

import logging
import threading

import pytest

from common.program import OptionError
from senders import registry, robots
from senders.drivers import DriverError
from senders.limits import MotionLimits
from senders.robots.bounded import Bounded
from senders.robots.lerobot_setup import Seldom, joint_order, line


class Robot:
    def __init__(self, *names: str) -> None:
        self.action_features = dict.fromkeys([*names, "base.vel"], float)


def test_calls_return_raise_and_are_given_up() -> None:
    bounded = Bounded("test")
    assert bounded.call(lambda: 3, 5.0) == 3
    with pytest.raises(ZeroDivisionError):
        bounded.call(lambda: 1 / 0, 5.0)
    threads = {bounded.call(threading.get_ident, 5.0) for _ in range(3)}
    assert len(threads) == 1 and threading.get_ident() not in threads
    stuck = threading.Event()
    with pytest.raises(TimeoutError):
        bounded.call(stuck.wait, 0.05)
    ran = threading.Event()
    with pytest.raises(TimeoutError):
        bounded.call(ran.set, 5.0)
    stuck.set()
    assert not ran.is_set()
    bounded.end()


def test_joints_go_by_order_or_by_name() -> None:
    robot = Robot("a.pos", "b.pos", "c.pos")
    assert joint_order(robot, ()) == ("a", "b", "c")
    assert joint_order(robot, ("c", " a")) == ("c", "a")
    for wrong in (("d",), ("a", "a"), ("base",)):
        with pytest.raises(DriverError, match="of a, b, c"):
            joint_order(robot, wrong)
    with pytest.raises(DriverError, match="7 joints, and the wire has 6"):
        joint_order(Robot(*(f"{n}.pos" for n in range(7))), ())
    with pytest.raises(DriverError, match="0 joints"):
        joint_order(Robot(), ())


def test_scaled_limits_scale_speeds_alone() -> None:
    full, tenth = MotionLimits.of_arm(speed_scale=1.0), MotionLimits.of_arm(speed_scale=0.1)
    assert full.scaled(0.1) == tenth
    assert tenth.joint_speed_deg_s == pytest.approx([0.1 * v for v in full.joint_speed_deg_s])
    assert tenth.pose_speed_mm_s == pytest.approx(25.0)
    assert tenth.pose_speed_deg_s == pytest.approx(9.0)
    kept = ("joint_min_deg", "joint_max_deg", "max_step_deg", "pose_min_mm", "lead_s")
    assert all(getattr(full, name) == getattr(tenth, name) for name in kept)


def test_errors_become_one_line_with_their_cause() -> None:
    error = ConnectionError("\nno\n  port ")
    error.__cause__ = OSError("denied")
    assert line(error) == "no port (denied)"
    assert line(ValueError()) == "ValueError"
    assert len(line(ValueError("x" * 5000))) == 300


def test_a_line_at_every_command_is_thinned_out() -> None:
    seldom = Seldom()
    other = logging.LogRecord("x", logging.INFO, "", 0, "something", (), None)
    clamp = logging.LogRecord("x", logging.INFO, "", 0, "Relative goal position …", (), None)
    assert seldom.filter(other)
    assert not seldom.filter(clamp)
    seldom._next._next = 0.0
    assert seldom.filter(clamp) and not seldom.filter(clamp)


def test_without_the_library_the_user_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install '\.\[lerobot\]' with Python 3\.12"):
        registry.choose(robots.DRIVERS, "lerobot")
