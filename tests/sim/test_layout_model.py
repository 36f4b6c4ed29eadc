"""The model: its geometry is the arm's, and its port is where a seed puts it."""

from __future__ import annotations

import numpy as np
import pytest

from common.kinematics import MECA500, flange_pose
from sim.ascan import RANGE_MM
from sim.engine import mujoco
from sim.layout import HOME_DEG, Layout, RigConfig, tip_transform
from sim.model import build_model, place
from sim.rig import InsertionRig


def test_forward_kinematics_are_the_arms(rng: np.random.Generator) -> None:
    rig = InsertionRig()
    low, high = np.array(MECA500.joint_min_deg), np.array(MECA500.joint_max_deg)
    for _ in range(200):
        joints = rng.uniform(low, high)
        rig.data.qpos[:6] = np.radians(joints)
        mujoco.mj_kinematics(rig.model, rig.data)
        assert rig.pose == pytest.approx(flange_pose(joints), abs=1e-6)
        _, tip = tip_transform(joints)
        assert rig.read().tip_mm == pytest.approx(tip, abs=1e-6)


def test_home_is_a_few_millimetres_before_the_port_in_every_episode() -> None:
    rig = InsertionRig()
    for seed in range(50):
        rig.reset(seed)
        reading = rig.read()
        assert -8.0 < reading.depth_mm < -1.0
        assert reading.lateral_mm < 5.0
        # The A-scan sees the tissue at either end of its motion.
        still = reading.distance_mm - reading.tissue_mm
        assert 1.5 < still < RANGE_MM - 1.5
        assert rig.force_n == pytest.approx(0.0, abs=1e-3)
    margin = np.minimum(
        np.array(HOME_DEG) - MECA500.joint_min_deg, np.array(MECA500.joint_max_deg) - HOME_DEG
    )
    assert margin.min() >= 35.0


def test_a_seed_is_a_place() -> None:
    config = RigConfig()
    one, same, other = (Layout.from_seed(config, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.port_mm, same.port_mm) and one.phase_rad == same.phase_rad
    assert not np.allclose(one.port_mm, other.port_mm)
    assert np.linalg.norm(one.axis) == pytest.approx(1.0)
    assert np.linalg.norm(one.port_mm) == pytest.approx(config.eye_radius_mm)


def test_placing_a_compiled_model_gives_what_compiling_for_the_seed_does() -> None:
    config = RigConfig()
    moved = build_model(config, 0)
    place(moved, config, Layout.from_seed(config, 7))
    fresh = build_model(config, 7)
    assert np.array_equal(moved.body_pos, fresh.body_pos)
    assert np.array_equal(moved.body_quat, fresh.body_quat)


@pytest.mark.parametrize(
    "options",
    [
        {"tissue_hz": float("nan")},
        {"tissue_amplitude_mm": 1e9},
        {"physics_hz": "1300"},
        {"port_spread": True},
        {"unknown": 1.0},
        [],
    ],
)
def test_options_that_make_no_sense_are_refused(options: object) -> None:
    with pytest.raises(ValueError):
        RigConfig.from_dict(options)
