"""Trajectories from bags of every kind and from sessions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.comparison.reading import read_trajectory
from scripts.comparison.trajectory import Trajectory, TrajectoryError, on_a_grid
from tests.scripts.bags import KINDS, Said, write
from tests.sessions import Made, joints_at, make_session

ROOT = Path(__file__).resolve().parents[2]


def swinging(rate_hz: float = 100.0, seconds: float = 2.0, **more: object) -> list[Said]:
    """Two joints, named in another order in every other message."""
    said = []
    for k in range(round(seconds * rate_hz) + 1):
        at = k / rate_hz
        names, values = ("a", "b"), (np.sin(at), np.cos(at))
        if k % 2:
            names, values = names[::-1], values[::-1]
        said.append(Said(at, names, values, **more))  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bag_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path, swinging(), others=("/chatter",))
    found = read_trajectory(path, 50.0)
    assert found.names == ("a", "b")
    assert len(found) == 101
    expected = np.degrees(np.stack([np.sin(found.times_s), np.cos(found.times_s)], axis=1))
    np.testing.assert_allclose(found.positions, expected, atol=1e-6)
    assert found.longest_gap_s == pytest.approx(0.01)


def test_times_are_the_headers_not_the_recorders(tmp_path: Path) -> None:
    said = swinging()
    late = [
        Said(one.at, one.names, one.positions, logged_late_s=0.3 if k % 3 else 0.0)
        for k, one in enumerate(said)
    ]
    found = read_trajectory(write("mcap", tmp_path, late), 50.0)
    np.testing.assert_allclose(found.positions[:, 0], np.degrees(np.sin(found.times_s)), atol=1e-6)


def test_without_stamps_the_recorders_times_count(tmp_path: Path) -> None:
    said = [Said(None, ("a",), (0.01 * k,)) for k in range(51)]
    found = read_trajectory(write("sqlite3", tmp_path, said), 50.0)
    np.testing.assert_allclose(found.positions[:, 0], np.degrees(0.01 * np.arange(51)), atol=1e-6)


def test_an_arm_and_a_gripper_may_share_a_topic(tmp_path: Path) -> None:
    arm = [Said(0.02 * k, ("a", "b"), (0.1 * k, 1.0)) for k in range(11)]
    hand = [Said(0.02 * k + 0.01, ("finger",), (0.2 * k,)) for k in range(11)]
    said = sorted(arm + hand, key=lambda one: one.at or 0.0)
    found = read_trajectory(write("mcap", tmp_path, said), 50.0, angles="degrees")
    assert found.names == ("a", "b", "finger")
    # The grid begins where all three have a value, 10 ms after the arm's first.
    np.testing.assert_allclose(found.positions[:, 0], 0.05 + 0.1 * np.arange(10), atol=1e-9)
    np.testing.assert_allclose(found.positions[:, 2], 0.2 * np.arange(10), atol=1e-9)


def test_the_topic_of_joint_states_is_taken_and_another_on_request(tmp_path: Path) -> None:
    said = swinging(topic="/arm/commands") + swinging(topic="/arm/joint_states", seconds=1.0)
    path = write("mcap", tmp_path, said)
    assert len(read_trajectory(path, 50.0)) == 51
    assert len(read_trajectory(path, 50.0, topic="/arm/commands")) == 101
    with pytest.raises(
        TrajectoryError, match=r"no JointState on /x; there are /arm/commands, /arm"
    ):
        read_trajectory(path, 50.0, topic="/x")


def test_joints_are_picked_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write("ros1", tmp_path, swinging())
    found = read_trajectory(path, 50.0, joints=("b", "a"))
    assert found.names == ("b", "a")
    assert found.positions[0] == pytest.approx([180 / np.pi, 0.0])
    with pytest.raises(TrajectoryError, match="no joint c; there are a, b"):
        read_trajectory(path, 50.0, joints=("c",))


def test_messages_without_positions_or_with_odd_ones_are_left_out(tmp_path: Path) -> None:
    said = swinging()
    said.insert(5, Said(0.045, ("a", "b"), ()))
    said.insert(9, Said(0.085, ("a", "b"), (99.0,)))
    said.insert(12, Said(0.11, ("a", "b"), (float("nan"), float("inf"))))
    found = read_trajectory(write("mcap", tmp_path, said), 50.0)
    np.testing.assert_allclose(found.positions[:, 0], np.degrees(np.sin(found.times_s)), atol=1e-3)
    only = [Said(0.02 * k, ("a", "b"), (1.0,)) for k in range(5)]
    with pytest.raises(TrajectoryError, match="5 messages have another number of names"):
        other = tmp_path / "other"
        other.mkdir()
        read_trajectory(write("mcap", other, only), 50.0)


def test_a_bag_without_joint_states_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="no topic with sensor_msgs/JointState"):
        read_trajectory(write("mcap", tmp_path, [], others=("/chatter",)), 50.0)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bags_give_one_line(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path, swinging())
    file = next(path.glob("bag.*")) if path.is_dir() else path
    whole = file.read_bytes()
    damages = (b"", whole[: len(whole) // 2], whole[:200] + bytes(200) + whole[400:])
    for number, damaged in enumerate(damages):
        file.write_bytes(damaged)
        try:
            found = read_trajectory(path, 50.0)
        except TrajectoryError as error:
            assert "\n" not in str(error), number
        else:
            # What survives is a part of the motion, and nothing else.
            assert np.abs(found.positions).max() <= 180 / np.pi + 1e-6


def test_what_is_no_recording_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mcap").write_text("no bag")
    (tmp_path / "text.txt").write_text("no bag")
    (tmp_path / "empty").mkdir()
    for name in ("text.mcap", "text.txt", "empty", "missing"):
        with pytest.raises(TrajectoryError) as said:
            read_trajectory(tmp_path / name, 50.0)
        assert "\n" not in str(said.value)


def test_a_session_gives_its_joints_in_degrees(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(views=(), aline_length=2, sensor_hz=50.0))
    found = read_trajectory(folder, 50.0)
    assert found.names == tuple(f"joint_{n}" for n in range(1, 7))
    expected = np.array([joints_at(at) for at in found.times_s])
    np.testing.assert_allclose(found.positions, expected, atol=1e-3)


def test_the_shipped_bag_is_a_minute_of_six_joints() -> None:
    folder = ROOT / "assets" / "example_bag"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000
    found = read_trajectory(folder, 50.0)
    assert found.names == tuple(f"joint_{n}" for n in range(1, 7))
    assert found.seconds == pytest.approx(58.0, abs=0.5)
    assert np.ptp(found.positions, axis=0).min() > 10.0
    # As smooth as an arm moves: no jump between two rows.
    assert found.top_speeds.max() < 150.0


def test_gaps_are_bridged_and_told() -> None:
    at = np.array([0.0, 0.1, 0.9, 1.0])
    found = on_a_grid({"a": (at, 10.0 * at)}, 10.0, "made")
    assert found.longest_gap_s == pytest.approx(0.8)
    np.testing.assert_allclose(found.positions[:, 0], np.arange(11.0))


def test_times_in_any_order_and_doubled_ones_are_put_right() -> None:
    at, values = np.array([0.2, 0.0, 0.1, 0.1]), np.array([2.0, 0.0, 5.0, 1.0])
    found = on_a_grid({"a": (at, values)}, 10.0, "made")
    np.testing.assert_allclose(found.positions[:, 0], [0.0, 1.0, 2.0])


def test_a_trajectory_survives_its_file_and_others_are_refused(tmp_path: Path) -> None:
    kept = Trajectory(("a", "b"), np.arange(8.0).reshape(4, 2), 50.0)
    kept.save(tmp_path / "kept.npz")
    again = Trajectory.load(tmp_path / "kept.npz")
    assert again.identity == kept.identity
    np.savez(tmp_path / "evil.npz", names=np.array([object()]), positions=kept.positions)
    (tmp_path / "text.npz").write_text("no npz")
    for name in ("evil.npz", "text.npz", "missing.npz"):
        with pytest.raises(TrajectoryError):
            Trajectory.load(tmp_path / name)
