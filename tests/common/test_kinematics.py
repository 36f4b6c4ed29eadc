from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.kinematics import MECA500, ArmGeometry, euler_xyz_deg, flange_pose, flange_transform

ANGLE = st.floats(-180.0, 180.0)
JOINTS = st.tuples(
    *(
        st.floats(max(low, -180.0), min(high, 180.0))
        for low, high in zip(MECA500.joint_min_deg, MECA500.joint_max_deg, strict=True)
    )
)


def rotation_of(alpha_deg: float, beta_deg: float, gamma_deg: float) -> np.ndarray:
    """Rx(α) Ry(β) Rz(γ), multiplied out by hand."""
    (ca, sa), (cb, sb), (cg, sg) = (
        (math.cos(math.radians(x)), math.sin(math.radians(x)))
        for x in (alpha_deg, beta_deg, gamma_deg)
    )
    return np.array(
        [
            [cb * cg, -cb * sg, sb],
            [ca * sg + sa * sb * cg, ca * cg - sa * sb * sg, -sa * cb],
            [sa * sg - ca * sb * cg, sa * cg + ca * sb * sg, ca * cb],
        ]
    )


def test_zero_pose_of_the_manual() -> None:
    np.testing.assert_allclose(flange_pose([0] * 6), [190, 0, 308, 0, 90, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("joints", "position"),
    [
        ((90, 0, 0, 0, 0, 0), (0, 190, 308)),
        ((-90, 0, 0, 0, 0, 0), (0, -190, 308)),
        ((0, 90, 0, 0, 0, 0), (135 + 38, 0, 135 - 190)),  # the upper arm leans forward
        ((0, 0, -90, 0, 0, 0), (-38, 0, 135 + 135 + 190)),  # the forearm points up
        ((0, 0, 0, 0, 90, 0), (120, 0, 308 - 70)),  # the wrist points down
        ((0, 0, 0, 90, 90, 0), (120, -70 * -1, 308)),  # the wrist points to the left (+y)
        ((0, 0, 0, 77, 0, 0), (190, 0, 308)),  # turns about the forearm do not move the flange
        ((0, 0, 0, 0, 0, 123), (190, 0, 308)),
    ],
)
def test_positions_worked_out_by_hand(
    joints: tuple[float, ...], position: tuple[float, ...]
) -> None:
    rotation, found = flange_transform(joints)
    np.testing.assert_allclose(found, position, atol=1e-9)
    np.testing.assert_allclose(flange_pose(joints)[:3], position, atol=1e-9)
    assert rotation.shape == (3, 3)


def test_wrist_down_looks_down() -> None:
    """With joint 5 at 90° the tool's axis is the base's −z."""
    rotation, _ = flange_transform([0, 0, 0, 0, 90, 0])
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-12)


def test_another_arms_lengths_are_used() -> None:
    arm = ArmGeometry(1.0, 10.0, 100.0, 1000.0, 10000.0, (), (), ())
    np.testing.assert_allclose(flange_pose([0] * 6, arm)[:3], [11000, 0, 111])


def chain(joints_deg: tuple[float, ...], arm: ArmGeometry) -> tuple[np.ndarray, np.ndarray]:
    """The same link by link: turn about an axis, then go along."""
    links = (
        ("z", (0.0, 0.0, arm.d1_mm)),
        ("y", (0.0, 0.0, arm.a2_mm)),
        ("y", (arm.d4_mm, 0.0, arm.a3_mm)),
        ("x", (0.0, 0.0, 0.0)),
        ("y", (arm.d6_mm, 0.0, 0.0)),
        ("x", (0.0, 0.0, 0.0)),
    )
    rotation, position = np.eye(3), np.zeros(3)
    for angle, (axis, along) in zip(joints_deg, links, strict=True):
        turn = {"x": (angle, 0, 0), "y": (0, angle, 0), "z": (0, 0, angle)}[axis]
        rotation = rotation @ rotation_of(*turn)
        position = position + rotation @ np.array(along)
    return rotation @ rotation_of(0, 90, 0), position


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[st.floats(-400.0, 400.0)] * 6), st.tuples(*[st.floats(-500.0, 500.0)] * 5))
def test_the_written_out_chain_is_the_chain(
    joints: tuple[float, ...], lengths: tuple[float, ...]
) -> None:
    arm = ArmGeometry(*lengths, (-1.0,) * 6, (1.0,) * 6, (1.0,) * 6)
    for ours, expected in zip(flange_transform(joints, arm), chain(joints, arm), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(JOINTS)
def test_every_transform_is_rigid_and_within_reach(joints: tuple[float, ...]) -> None:
    rotation, position = flange_transform(joints)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    shoulder = np.array([0.0, 0.0, 135.0])
    assert np.linalg.norm(position - shoulder) <= 135 + math.hypot(38, 120) + 70 + 1e-9


@settings(max_examples=200, deadline=None)
@given(JOINTS)
def test_euler_angles_of_a_pose_give_its_rotation(joints: tuple[float, ...]) -> None:
    rotation, position = flange_transform(joints)
    pose = flange_pose(joints)
    np.testing.assert_array_equal(pose[:3], position)
    np.testing.assert_allclose(rotation_of(*pose[3:]), rotation, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(ANGLE, st.floats(-89.9, 89.9), ANGLE)
def test_euler_angles_come_back(alpha: float, beta: float, gamma: float) -> None:
    found = euler_xyz_deg(rotation_of(alpha, beta, gamma))
    turns = (found - [alpha, beta, gamma] + 180) % 360 - 180
    np.testing.assert_allclose(turns, 0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(ANGLE, st.sampled_from([90.0, -90.0]), st.floats(-1e-3, 1e-3), ANGLE)
def test_euler_angles_at_the_singularity(
    alpha: float, beta: float, near: float, gamma: float
) -> None:
    """Only α ± γ is determined: the rotation has to come back, the angles need not."""
    exact = rotation_of(alpha, beta, gamma)
    found = euler_xyz_deg(exact)
    assert found[2] == 0.0
    assert found[1] == pytest.approx(beta, abs=1e-5)
    np.testing.assert_allclose(rotation_of(*found), exact, atol=1e-6)
    beside = rotation_of(alpha, beta + near, gamma)
    np.testing.assert_allclose(rotation_of(*euler_xyz_deg(beside)), beside, atol=1e-4)


def test_a_rotation_a_rounding_error_beyond_one() -> None:
    rotation = rotation_of(0, 90, 0)
    rotation[0, 2] = 1.0 + 1e-12
    np.testing.assert_allclose(euler_xyz_deg(rotation), [0, 90, 0])
