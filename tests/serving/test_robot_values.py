"""Between what a client measures and executes and what this project's policies know."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from common.wire import RobotState
from policies.base import ActionChunk
from serving.body import BodyState
from serving.messages import Instructions, Observation, Picture
from serving.policies.dual_rate import DualRateSessions
from serving.robot_values import StatePlaces, at_tick_ends
from serving.served import Request
from serving.speeds import SpeedGauge
from tests.serving.test_control_loop import FPS, FakeBody, World
from tests.serving.test_split import JOINTS, SPEC, Fast

ROBOT = RobotState(0.0, 0.0, 0.0, (10.0,) * 6, (0.0,) * 6)


def positions(*values: float) -> NDArray[np.float32]:
    """Rows of seven values that are alike."""
    return np.repeat(np.array(values, np.float32)[:, None], 7, axis=1)


def test_rows_say_where_to_be_when_the_first_tick_ends() -> None:
    """A motion of 10 units a second, from 10 at the observation: row k is due at (k + 1) 0.1 s."""
    rows = positions(11.0, 12.0, 13.0)
    at_100_hz = at_tick_ends(rows, ROBOT, 0.1, 0.01)
    assert at_100_hz[:, :6] == pytest.approx(positions(10.1, 11.1, 12.1)[:, :6], abs=1e-5)
    # Of the gripper nobody knows where it is: it begins at what it is told first.
    assert at_100_hz[0, 6] == 11.0
    assert at_100_hz.dtype == np.float32
    half = at_tick_ends(rows, ROBOT, 0.1, 0.05)
    assert half[:, :6] == pytest.approx(positions(10.5, 11.5, 12.5)[:, :6], abs=1e-5)
    assert rows[0, 0] == 11.0, "the policy's own rows stay as they are"


@pytest.mark.parametrize("period_s", [0.0, 0.1, 0.5])
def test_rows_stay_as_they_are_at_the_policys_own_rate(period_s: float) -> None:
    rows = positions(11.0, 12.0)
    assert at_tick_ends(rows, ROBOT, 0.1, period_s) is rows
    assert at_tick_ends(rows, None, 0.1, 0.01) is rows


class Whole(Fast):
    """Both halves; remembers what it was told of the robot."""

    def __init__(self) -> None:
        self.told: list[RobotState | None] = []

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> float:
        return 1.0

    def pack(self, features: float) -> bytes:
        return str(features).encode()

    def act(
        self,
        features: float,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        self.told.append(robot)
        return super().act(features, sensor, robot, previous)


@pytest.mark.parametrize(
    ("fps", "first"), [(0.0, 11.0), (FPS, 11.0), (10 * FPS, 10.1), (4 * FPS, 10.25)]
)
def test_a_server_gives_rows_for_the_clients_control_rate(fps: float, first: float) -> None:
    policy = Whole()
    served = DualRateSessions(policy, 60.0)
    cameras = dict.fromkeys(SPEC.views, (4, 6, 3))
    memory = served.admit(
        Instructions("qwen_vla", "here", state_names=JOINTS, cameras=cameras, fps=fps)
    )
    black = {view: Picture(pixels=np.zeros((4, 6, 3), np.uint8)) for view in SPEC.views}
    speeds = np.arange(6, dtype=np.float32)
    seen = Observation(0, 1.0, True, np.full(6, 10.0, np.float32), black, speeds=speeds)
    (answer,) = served.predict([Request(seen, memory, time.monotonic())])
    assert not isinstance(answer, Exception) and answer.actions is not None
    # Deltas of 1 a row: the first row is for one row's time after the observation.
    assert answer.actions[:, 0] == pytest.approx(first + np.arange(4), abs=1e-5)
    (robot,) = policy.told
    assert robot is not None and robot.speeds == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


def test_speeds_that_a_client_tells_are_those_of_its_joints() -> None:
    places = StatePlaces.of(("gripper.pos", *JOINTS))
    speeds = np.arange(7, dtype=np.float32)
    seen = Observation(0, 1.0, True, np.zeros(7, np.float32), speeds=speeds)
    first = places.moving_state(seen, None)
    assert first is not None and first.speeds == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert StatePlaces.of(("a", "b")).moving_state(seen, None) is None


def gauge(*states: tuple[float, float]) -> SpeedGauge:
    """That has seen these times and values."""
    one = SpeedGauge()
    for at, value in states:
        one.see(BodyState(np.array([value, 0.0]), at))
    return one


@pytest.mark.parametrize(
    ("states", "speed"),
    [
        ([(1.0, 5.0), (1.1, 6.0)], 10.0),
        # The nearest that is far enough away: what was before that was another motion.
        ([(1.0, 0.0), (1.05, 5.0), (1.08, 90.0), (1.1, 6.0)], 20.0),
        ([(1.0, 5.0), (1.1, 5.5), (1.1, 6.0)], 10.0),
        ([(1.0, 5.0)], None),
        ([(1.0, 5.0), (1.01, 6.0)], None),
        ([(1.0, 5.0), (1.5, 6.0)], None),
        ([(2.0, 5.0), (1.0, 5.0), (1.01, 6.0)], None),
        ([], None),
    ],
)
def test_speeds_come_of_the_states_just_before(
    states: list[tuple[float, float]], speed: float | None
) -> None:
    speeds = gauge(*states).speeds
    if speed is None:
        assert speeds is None
    else:
        assert speeds is not None and speeds.dtype == np.float32
        assert speeds == pytest.approx([speed, 0.0])


def test_a_client_tells_how_fast_it_moves() -> None:
    """Observations are further apart than speeds can be told from: the control ticks are not."""

    class Rising(FakeBody):
        def read(self) -> BodyState:
            return BodyState(np.full(3, 7.0 * self.now), self.now)

    world = World(Rising())
    world.tick(30)
    assert world.sent[0].speeds is None, "nothing was seen before"
    later = [one.speeds for one in world.sent[1:]]
    assert later and all(one is not None for one in later)
    assert later[-1] == pytest.approx([7.0] * 3, rel=1e-4)
