"""The policy that follows a trajectory, the body that it moves, and what is made of a run."""

from __future__ import annotations

import numpy as np
import pytest

from policies.base import PolicyError
from scripts.comparison.body import FollowingBody
from scripts.comparison.measures import METHODS, Told, figures_of, laid_out
from scripts.comparison.policy import (
    FAST_ROWS,
    FollowingFastHalf,
    FollowingPolicy,
    Segment,
    state_names,
)
from scripts.comparison.predictors import InLoop, InThread
from scripts.comparison.server import POLICY_TYPE, follow_path, load
from scripts.comparison.trajectory import Trajectory
from serving.engine_options import EngineOptions
from serving.messages import Chunk, FeatureReply, Instructions, Observation, ServingError
from serving.served import Request
from tests.support import wait_until

HZ = 50.0


def sine(seconds: float = 8.0) -> Trajectory:
    at = np.arange(0, seconds, 1 / HZ)
    return Trajectory(("a", "b"), np.stack([20 * np.sin(at), 10 * np.cos(at)], axis=1), HZ)


def told(trajectory: Trajectory, rows: int = 100) -> Instructions:
    return Instructions(
        POLICY_TYPE,
        follow_path(0.0, False),
        actions_per_chunk=rows,
        state_names=state_names(trajectory),
        fps=HZ,
    )


def seen(trajectory: Trajectory, row: float, wants: str = "actions") -> Observation:
    joints = trajectory.positions[min(round(row), len(trajectory) - 1)]
    state = np.append(joints, row / HZ).astype(np.float32)
    return Observation(3, 1000.0, True, state, wants=wants)  # type: ignore[arg-type]


def predicted(trajectory: Trajectory, observation: Observation, rows: int = 100) -> np.ndarray:
    policy = FollowingPolicy(trajectory)
    memory = policy.admit(told(trajectory, rows))
    result = policy.predict([Request(observation, memory)])[0]
    assert not isinstance(result, Exception) and result.actions is not None
    return result.actions


def test_a_chunk_follows_what_was_observed() -> None:
    path = sine()
    rows = predicted(path, seen(path, 40.3))
    np.testing.assert_allclose(rows, path.positions[40:140], atol=1e-5)


def test_time_decides_for_a_robot_that_is_behind() -> None:
    path = sine()
    late = Observation(3, 1000.0, True, np.append(path.positions[100], 110 / HZ).astype(np.float32))
    np.testing.assert_allclose(predicted(path, late)[0], path.positions[110], atol=1e-5)


def test_behind_the_end_the_robot_stays() -> None:
    path = sine()
    rows = predicted(path, seen(path, len(path) + 30))
    np.testing.assert_allclose(rows, np.repeat(path.positions[-1:], 100, axis=0), atol=1e-5)


def test_slow_and_fast_half_together_say_what_the_whole_says() -> None:
    path = sine()
    policy, fast = FollowingPolicy(path), FollowingFastHalf(path)
    memory = policy.admit(told(path))
    result = policy.predict([Request(seen(path, 50, "features"), memory)])[0]
    assert not isinstance(result, Exception) and result.features is not None
    assert result.identity == fast.spec.identity
    features = fast.unpack(result.features)
    # 0.8 s later the fast half sees where the robot is now.
    chunk = fast.act(features, seen(path, 90).state[None], None, None)
    np.testing.assert_allclose(chunk.actions, path.positions[90 : 90 + FAST_ROWS], atol=1e-5)
    with pytest.raises(PolicyError, match="is over"):
        fast.act(features, seen(path, 151).state[None], None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"seg1",
        b"xxxx" + Segment(0, np.zeros((3, 2), np.float32)).pack()[4:],
        Segment(0, np.zeros((3, 2), np.float32)).pack()[:-1],
        Segment(0, np.zeros((3, 2), np.float32)).pack() + b"\0",
        Segment(0, np.zeros((3, 5), np.float32)).pack(),
        Segment(0, np.full((3, 2), np.nan, np.float32)).pack(),
    ],
)
def test_features_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(PolicyError):
        FollowingFastHalf(sine()).unpack(data)


def test_the_server_loads_it_by_its_path_only() -> None:
    path = sine()
    policy = load(path, told(path), EngineOptions())
    assert isinstance(policy, FollowingPolicy)
    for wrong in ("follow?", "follow?delay_s=x&busy=0", "follow?delay_s=-1&busy=0"):
        with pytest.raises(ServingError):
            load(path, Instructions(POLICY_TYPE, wrong), EngineOptions())
    assert not isinstance(
        load(path, Instructions("builtin", "hold"), EngineOptions()), type(policy)
    )


def test_it_refuses_another_robot() -> None:
    with pytest.raises(ServingError, match="this trajectory's state is a, b, time_s"):
        FollowingPolicy(sine()).admit(Instructions("builtin", "", state_names=("a", "b")))


def test_predictions_in_the_loop_and_in_a_thread_are_the_same() -> None:
    path = sine()
    in_loop = InLoop(FollowingPolicy(path), told(path))
    in_thread = InThread(FollowingPolicy(path), told(path))
    for wants, kind in (("actions", Chunk), ("features", FeatureReply)):
        observation = seen(path, 20, wants)
        in_loop.send(observation, 1)
        (here,) = in_loop.arrivals()
        wait_until(lambda: in_thread.free, "an idle thread")
        in_thread.send(observation, 1)
        came: list[object] = []
        wait_until(lambda into=came: into.extend(in_thread.arrivals()) or into, "an answer")
        there = came[0].reply  # type: ignore[attr-defined]
        assert isinstance(here.reply, kind) and isinstance(there, kind)
        assert (there.timestep, there.timestamp) == (3, 1000.0)
        if isinstance(there, Chunk):
            np.testing.assert_array_equal(there.actions, here.reply.actions)
    in_thread.close()


def test_an_observation_of_another_length_is_refused_not_raised() -> None:
    path = sine()
    thread = InThread(FollowingPolicy(path), told(path))
    thread.send(Observation(0, 0.0, True, np.zeros(7, np.float32)), 1)
    came: list[object] = []
    wait_until(lambda: came.extend(thread.arrivals()) or came, "a refusal")
    assert isinstance(came[0].reply, ServingError)  # type: ignore[attr-defined]
    thread.close()


def test_the_body_goes_where_it_is_told_within_its_limits() -> None:
    path = sine()
    body = FollowingBody(path)
    body.open()
    assert body.read().values[-1] == 0.0
    limiter = body.limiter(HZ)
    target = limiter.next(path.positions[0] + 100.0, None, path.positions[0])
    assert target is not None
    assert (np.abs(target - path.positions[0]) <= body.speed / HZ + 1e-9).all()
    body.move(target)
    wait_until(lambda: np.allclose(body.read().values[:2], target, atol=1e-3), "the target")
    assert body.read().values[-1] > 0.0
    assert body.began_at is not None and len(body.commands) == 1
    steps = np.diff(np.array([joints for _, joints in body.path]), axis=0)
    times = np.diff(np.array([at for at, _ in body.path]))
    assert (np.abs(steps) <= body.speed * times[:, None] + 1e-9).all()
    body.close()


def run_of(path: Trajectory, ticks: np.ndarray, rows: np.ndarray) -> Told:
    moves = np.ones(len(ticks), bool)
    ages = np.full(len(ticks), 0.25)
    return Told(ticks, 100.0 + ticks / HZ, path.positions[rows], moves, ages, path.positions)


def test_a_run_that_is_told_everything_has_no_error() -> None:
    path = sine(4.0)
    every = np.arange(len(path))
    figures = figures_of(laid_out("threaded", 0.8, path, run_of(path, every, every)))
    assert figures.mae_all == figures.rmse_all == figures.without == 0.0
    assert figures.rate_hz == pytest.approx(HZ)
    assert figures.longest_gap_s == pytest.approx(1 / HZ)
    assert (figures.stalls, figures.input_age_s) == (0, 0.25)


def test_a_stall_counts_as_a_gap_and_as_an_error_at_the_same_time() -> None:
    path = Trajectory(("a",), np.arange(200.0)[:, None], HZ)
    # 100 rows on time, 40 ticks without, then what should have come 40 ticks earlier.
    ticks = np.concatenate([np.arange(100), np.arange(140, 240)])
    rows = np.concatenate([np.arange(100), np.arange(100, 200)])
    outcome = laid_out("synchronous", 0.8, path, run_of(path, ticks, rows))
    figures = figures_of(outcome)
    assert outcome.fresh.sum() == 160
    assert figures.without == pytest.approx(40 / 200)
    assert figures.longest_gap_s == figures.stall_s == pytest.approx(41 / HZ)
    assert figures.stalls == 1
    # In the stall the error grows by one a tick; behind it, it stays at 40.
    error = np.abs(outcome.commanded - outcome.recorded)[:, 0]
    np.testing.assert_allclose(error[100:140], np.arange(1, 41))
    np.testing.assert_allclose(error[140:], 40.0)
    assert figures.mae[0] == pytest.approx((np.arange(1, 41).sum() + 60 * 40) / 200)


def test_a_hold_is_a_command_but_no_action() -> None:
    path = sine(2.0)
    ticks = np.arange(len(path))
    run = run_of(path, ticks, ticks)
    moves = np.ones(len(ticks), bool)
    moves[50:60] = False
    held = Told(ticks, run.at, run.targets, moves, run.input_ages_s, run.measured)
    figures = figures_of(laid_out("threaded", 0.0, path, held))
    assert figures.without == pytest.approx(10 / len(path))
    assert figures.longest_gap_s == pytest.approx(11 / HZ)


def test_what_does_not_begin_with_an_action_is_no_run() -> None:
    path = sine(2.0)
    with pytest.raises(ValueError, match="tick 0"):
        laid_out(METHODS[0], 0.0, path, run_of(path, np.arange(1, 5), np.arange(1, 5)))
