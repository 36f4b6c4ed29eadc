"""The rig in motion: limits, contact, the tissue, and the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from common.kinematics import MECA500, flange_pose
from sim.layout import HOME_DEG, RigConfig
from sim.rig import InsertionRig

STILL = RigConfig(tissue_amplitude_mm=0.0)


def run(rig: InsertionRig, seconds: float) -> None:
    for _ in range(round(seconds * rig.config.physics_hz / 2)):
        rig.step(2)


def insert(rig: InsertionRig, depth_mm: float) -> None:
    """Bring the tip onto the port's axis, `depth_mm` behind its opening, without turning."""
    layout = rig.layout
    goal = layout.eye_mm + layout.port_mm + layout.axis * depth_mm
    pose = flange_pose(HOME_DEG)
    pose[:3] = rig.pose[:3] + goal - rig.read().tip_mm
    rig.command_pose(pose)
    run(rig, 0.5)


def test_pressing_the_tissue_costs_its_stiffness() -> None:
    rig = InsertionRig(STILL, seed=1)
    insert(rig, -3.0)
    insert(rig, 7.0)
    before = rig.read()
    assert before.distance_mm == pytest.approx(1.0, abs=0.1)
    assert before.force_n == pytest.approx(0.0, abs=0.02)
    forces, pushed = [], []
    for depth in (9.0, 10.0, 11.0):
        insert(rig, depth)
        forces.append(rig.read().force_n)
        pushed.append(-rig.read().distance_mm)
    assert forces[0] < forces[1] < forces[2]
    slope = np.polyfit(pushed, forces, 1)[0]
    assert slope == pytest.approx(STILL.tissue_stiffness_n_mm, rel=0.2)
    insert(rig, 5.0)
    assert rig.read().force_n == pytest.approx(0.0, abs=0.02)


def test_the_eye_is_closed_beside_the_port() -> None:
    rig = InsertionRig(STILL, seed=0)
    layout = rig.layout
    aside = np.cross(layout.axis, [0.0, 0.0, 1.0])
    aside /= np.linalg.norm(aside)
    pose = flange_pose(HOME_DEG)
    on_wall = layout.eye_mm + layout.port_mm + 5.0 * aside
    for depth in (-4.0, 3.0):
        pose[:3] = rig.pose[:3] + on_wall + layout.axis * depth - rig.read().tip_mm
        rig.command_pose(pose)
        run(rig, 0.6)
    assert np.linalg.norm(rig.data.sensordata) > 0.1
    assert np.linalg.norm(rig.data.qpos[6:9]) > 2e-4  # it gave way


def test_wiggling_about_home_is_gentle(rng: np.random.Generator) -> None:
    """What an untrained policy does: joint targets around home, a new one ten times a second."""
    peak = 0.0
    for seed in range(3):
        rig = InsertionRig(RigConfig(), seed)
        wiggle = np.zeros(6)
        for _ in range(40):
            wiggle = 0.8 * wiggle + rng.uniform(-0.5, 0.5, 6)
            rig.command_joints(np.array(HOME_DEG) + np.clip(wiggle, -1.5, 1.5))
            for _ in range(13):
                rig.step(10)
                peak = max(peak, float(np.linalg.norm(rig.data.sensordata)))
    assert peak < 2.0


def test_limits_hold_whatever_is_commanded(rng: np.random.Generator) -> None:
    rig = InsertionRig(RigConfig(joint_speed_share=1.0), seed=2)
    low, high = np.array(MECA500.joint_min_deg), np.array(MECA500.joint_max_deg)
    speed = np.array(MECA500.joint_speed_deg_s)
    for k in range(60):
        if k % 3 == 2:
            rig.command_pose(np.concatenate([rng.uniform(-900, 900, 3), rng.uniform(-360, 360, 3)]))
        else:
            rig.command_joints(rng.choice([-1e6, 1e6, 0.0, 50.0], 6))
        for _ in range(int(rng.integers(20, 120))):
            rig.step(2)
            joints = rig.joints_deg
            assert (joints >= low).all() and (joints <= high).all()
            assert (np.abs(np.degrees(rig.data.qvel[:6])) <= speed * 1.001).all()


@pytest.mark.parametrize(
    "values",
    [
        [float("nan")] * 6,
        [0, 0, 0, 0, 0, float("inf")],
        [0.0] * 5,
        [[0.0] * 6],
        ["a"] * 6,
        None,
        [10**400] * 6,
    ],
)
def test_commands_that_are_not_six_finite_numbers_are_refused(values: object) -> None:
    rig = InsertionRig()
    for command in (rig.command_joints, rig.command_pose):
        with pytest.raises(ValueError):
            command(values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2000 mm"):
        rig.command_pose([5000.0, 0, 0, 0, 0, 0])
    run(rig, 0.05)
    assert rig.joints_deg == pytest.approx(HOME_DEG, abs=0.01)


def test_a_pose_is_reached_and_held() -> None:
    rig = InsertionRig(STILL)
    goal = flange_pose(np.add(HOME_DEG, [-6.0, -5.0, 3.0, 8.0, -4.0, 10.0]))
    rig.command_pose(goal)
    run(rig, 1.5)
    assert rig.pose == pytest.approx(goal, abs=0.05)
    rig.command_joints(np.array(HOME_DEG) + 20.0)
    run(rig, 0.05)
    rig.hold()
    at = rig.joints_deg
    run(rig, 0.5)
    # Braking takes what the position loop lags behind: its 10 ms at the joints' speed.
    assert np.abs(rig.joints_deg - at).max() < 1.5


@pytest.mark.parametrize(("amplitude_mm", "hz"), [(1.5, 1.0), (0.8, 2.0), (0.0, 1.0)])
def test_the_tissue_moves_as_asked(amplitude_mm: float, hz: float) -> None:
    rig = InsertionRig(RigConfig(tissue_amplitude_mm=amplitude_mm, tissue_hz=hz), seed=5)
    distances, bodies = [], []
    for _ in range(650 * 2):
        rig.step(2)
        distances.append(rig.read().distance_mm)
        bodies.append(rig.data.qpos[9] * 1e3)
    wave = np.array(distances) - np.mean(distances)
    assert np.ptp(wave) / 2 == pytest.approx(amplitude_mm, abs=0.02)
    # The surface that is felt is where the A-scan shows it.
    assert np.array(bodies) - np.mean(bodies) == pytest.approx(wave, abs=0.05)
    if amplitude_mm:
        spectrum = np.abs(np.fft.rfft(wave))
        assert np.fft.rfftfreq(len(wave), 1 / 650)[spectrum.argmax()] == pytest.approx(hz)


def test_the_same_seed_and_commands_give_the_same_motion(rng: np.random.Generator) -> None:
    targets = np.array(HOME_DEG) + rng.uniform(-2, 2, (20, 6))

    def motion(rig: InsertionRig) -> np.ndarray:
        rows = []
        for target in targets:
            rig.command_joints(target)
            rig.step(50)
            rows.append(np.r_[rig.data.qpos, rig.force_n, rig.read().distance_mm])
        return np.array(rows)

    first = InsertionRig(seed=9)
    fresh = motion(first)
    first.reset(4)
    other = motion(first)
    first.reset(9)
    assert first.episode == 2
    assert np.array_equal(fresh, motion(first))
    assert np.array_equal(fresh, motion(InsertionRig(seed=9)))
    assert not np.allclose(fresh[:, -1], other[:, -1])
