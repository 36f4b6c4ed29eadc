"""The scripted expert does the task, and its demonstrations are what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from sim import demonstrations
from sim.demonstration_files import read_demonstrations, write_demonstrations
from sim.demonstrations import Demonstrator
from sim.expert import Expert, joints_for_tip
from sim.layout import HOME_DEG, Layout, RigConfig, TissueKind, tip_transform
from sim.rig import InsertionRig
from sim.task import Judge


@pytest.mark.parametrize(
    ("seed", "tissue"),
    [*((seed, "regular") for seed in range(4)), *((seed, "irregular") for seed in range(3))],
)
def test_the_expert_succeeds(seed: int, tissue: TissueKind) -> None:
    rig, judge = InsertionRig(RigConfig(tissue=tissue), seed), Judge()
    expert = Expert(rig.config, rig.layout, rig.joints_deg)
    verdict = judge.verdict(0.0)
    while rig.time_s < 6.0:
        rig.command_joints(expert.step(rig.time_s, 0.01))
        rig.step(13)
        verdict = judge.see(rig.read())
    assert verdict.success
    assert verdict.rms_mm < 0.15
    assert verdict.force_n < 0.1


@pytest.mark.parametrize("seed", [4, 5])
def test_an_arm_that_does_what_it_is_told_each_tick_succeeds(seed: int) -> None:
    rig, judge = InsertionRig(seed=seed), Judge()
    verdict = judge.verdict(0.0)
    target = rig.joints_deg
    while rig.time_s < 7.0:
        begin = target
        asked = Expert(rig.config, rig.layout, rig.joints_deg)
        target = asked.rows(rig.time_s, 16, 0.1)[0]
        for period in range(1, 11):
            rig.command_joints(begin + (target - begin) * period / 10)
            rig.step(13)
            verdict = judge.see(rig.read())
    assert verdict.success
    assert verdict.rms_mm < 0.2


def test_a_needle_that_was_turned_about_itself_is_turned_back() -> None:
    rig = InsertionRig(seed=6)
    turned = np.add(HOME_DEG, [0.0, 0.0, 0.0, 0.0, 0.0, 4.0])
    rows = Expert(rig.config, rig.layout, turned).rows(0.0, 16, 0.1)
    assert rows[0, 5] == pytest.approx(HOME_DEG[5] + 2.5)
    assert rows[-1, 5] == pytest.approx(HOME_DEG[5])


def test_joints_are_found_for_a_tip() -> None:
    axis, tip = tip_transform(HOME_DEG)
    target = tip + np.array([4.0, -5.0, 3.0])
    leaning = axis + np.array([0.05, -0.03, 0.02])
    leaning /= np.linalg.norm(leaning)
    joints = joints_for_tip(target, leaning, HOME_DEG)
    has_axis, has_tip = tip_transform(joints)
    assert has_tip == pytest.approx(target, abs=2e-3)
    assert has_axis == pytest.approx(leaning, abs=2e-5)
    assert joints[5] == HOME_DEG[5]
    with pytest.raises(ValueError, match="cannot be put"):
        joints_for_tip([5000.0, 0.0, 0.0], axis, HOME_DEG)


@pytest.fixture(scope="module")
def demonstrator() -> Iterator[Demonstrator]:
    with closing(Demonstrator(("View3", "View4"), 160, 90)) as made:
        yield made


@pytest.mark.parametrize("kind", ["home", "inside"])
def test_a_demonstration_ends_where_it_should(demonstrator: Demonstrator, kind: str) -> None:
    made = demonstrator.make(1_000_001, kind)
    assert np.diff(made.times_s) == pytest.approx(0.01, abs=1e-6)
    assert np.diff(made.sampled_s) == pytest.approx(2 / 1300, abs=1e-6)
    assert np.diff(made.ticks_s) == pytest.approx(0.1, abs=1e-6)
    assert made.rows_deg.shape == (len(made.ticks_s), 16, 6)
    # The arm errs: it is not where it was told to be, nor far from there.
    went = made.joints_deg[10::10][: len(made.ticks_s)]
    tips, told = (np.array([tip_transform(j)[1] for j in js]) for js in (went, made.rows_deg[:, 0]))
    off_mm = np.linalg.norm(tips - told, axis=1)
    assert 0.1 < np.median(off_mm) < 2.5
    _, goal = tip_transform(made.goal_deg)
    assert np.linalg.norm(tips[-1] - goal) < 12.0
    # What it is told leads back all the same: in the end, to the goal but for the tissue's motion.
    ends = np.array([tip_transform(rows[-1])[1] for rows in made.rows_deg[-10:]])
    axis, _ = tip_transform(made.goal_deg)
    aside = (ends - goal) - np.outer((ends - goal) @ axis, axis)
    assert np.linalg.norm(aside, axis=1).max() < 0.5
    for pictures in made.pictures.values():
        assert len(pictures) == len(made.seen_s)
        decoded = cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.shape == (90, 160, 3)


def test_errors_out_of_the_arms_reach_are_not_made(
    demonstrator: Demonstrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = np.array([-1e4, 0.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(demonstrations._Clumsy, "_drawn", lambda _: back)
    made = demonstrator.make(8, "inside")
    # Where the error would take it nowhere, it does what it is told.
    assert len(made.ticks_s) == 45
    assert np.median(np.abs(made.distances_mm[-1000:] - 2.0)) < 0.5


def test_no_threshold_parts_going_in_from_waiting() -> None:
    rig = InsertionRig(seed=3)
    config, layout = rig.config, rig.layout
    home = Expert(config, layout, HOME_DEG)
    side = np.cross(layout.axis, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)

    def advance_mm(off_mm: float, depth_mm: float) -> float:
        """How much further in the first row is."""
        tip = home.port_mm + depth_mm * layout.axis + off_mm * side
        joints = joints_for_tip(tip, home.needle, HOME_DEG)
        told = Expert(config, layout, joints).rows(0.0, 1, 0.1)[0]
        return float((tip_transform(told)[1] - tip) @ layout.axis)

    for depth_mm in (-1.0, -2.0):
        advances = np.array([advance_mm(off, depth_mm) for off in np.arange(0.3, 1.8, 0.05)])
        # At full speed near the axis, back from far off it, and no jump in between.
        assert advances[0] == pytest.approx(1.6, abs=0.01)
        assert advances[-1] == pytest.approx(-2.5 - depth_mm, abs=0.01)
        assert np.abs(np.diff(advances)).max() < 0.2
        assert (np.diff(advances) <= 1e-4).all()


def test_demonstrations_hold_needles_that_are_off_their_direction(
    demonstrator: Demonstrator,
) -> None:
    off_deg, left_deg = [], []
    for seed in range(40, 46):
        made = demonstrator.make(seed, "home")
        needle = Expert(RigConfig(), Layout.from_seed(RigConfig(), seed), HOME_DEG).needle
        places = np.searchsorted(made.times_s, made.ticks_s)
        for joints, rows in zip(made.joints_deg[places], made.rows_deg, strict=True):
            for angles, into in ((joints, off_deg), (rows[0], left_deg)):
                cosine = min(float(tip_transform(angles)[0] @ needle), 1.0)
                into.append(math.degrees(math.acos(cosine)))
    off, left = np.array(off_deg), np.array(left_deg)
    far = off > 2.0
    assert far.mean() > 0.05
    assert np.median(off[far] - left[far]) > 0.5  # and what is to be done about it


def test_a_seed_gives_the_same_demonstration(demonstrator: Demonstrator) -> None:
    first, _, again = (demonstrator.make(seed, "inside") for seed in (5, 6, 5))
    assert np.array_equal(first.joints_deg, again.joints_deg)
    assert np.array_equal(first.distances_mm, again.distances_mm)
    assert first.pictures == again.pictures


def test_demonstrations_are_read_as_written(demonstrator: Demonstrator, tmp_path: Path) -> None:
    made = [demonstrator.make(seed, kind) for seed, kind in ((1, "look"), (2, "inside"))]
    write_demonstrations(tmp_path / "a.npz", made)
    read = list(read_demonstrations(tmp_path / "a.npz"))
    assert [one.seed for one in read] == [1, 2]
    for one, other in zip(made, read, strict=True):
        assert one.pictures == other.pictures
        assert np.array_equal(one.joints_deg, other.joints_deg)
        assert np.array_equal(one.rows_deg, other.rows_deg)
    np.savez(tmp_path / "b.npz", nothing=np.zeros(3))
    with pytest.raises(ValueError, match="no demonstrations"):
        list(read_demonstrations(tmp_path / "b.npz"))


def test_an_episode_may_begin_elsewhere() -> None:
    rig = InsertionRig(seed=3)
    inside = Expert(rig.config, rig.layout, HOME_DEG).goal_deg
    rig.reset(3, inside)
    assert rig.read().depth_mm > 4.0
    rig.command_joints(inside)
    rig.step(300)
    assert abs(rig.force_n) < 0.05  # the wall does not throw it out
    with pytest.raises(ValueError, match="six finite"):
        rig.reset(3, [1.0, 2.0])
