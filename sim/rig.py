"""The insertion rig in motion: physics, position control of the arm, and what can be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.kinematics import MECA500, euler_xyz_deg
from sim.engine import mujoco
from sim.model import HOME_DEG, Layout, RigConfig, build_model, place
from sim.tissue import tissue_motion

__all__ = ["InsertionRig", "Reading"]

# Targets stay this far inside the joint ranges and below the joint speeds, so that what is left
# of the position loop's error cannot carry a joint over.
_RANGE_MARGIN_DEG = 0.1
_SPEED_SHARE = 0.98
# A pose further away than this is outside any arm of this size, and a mistake in units.
_POSE_LIMIT_MM = 2000.0
# Damping of the inverse kinematics, in metres and radians: about the size of the smallest motion
# that should still be followed exactly.
_IK_DAMPING = 0.01
_IK_STEP_MM = 20.0
_IK_STEP_DEG = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rig measures at one instant.

    Attributes:
        time_s: simulated seconds since the last reset.
        distance_mm: from the needle's tip to the tissue surface at rest, along the port's axis;
            negative by as much as the tip has pushed the tissue in.
        lateral_mm: from the port's axis to the tip.
        depth_mm: how far the tip is past the port's opening along its axis; negative outside.
        force_n: along the needle, positive when something pushes against its tip.
        tissue_mm: the tissue surface's displacement along the port's axis.
        tip_mm: (3,) the tip in the world.
    """

    time_s: float
    distance_mm: float
    lateral_mm: float
    depth_mm: float
    force_n: float
    tissue_mm: float
    tip_mm: NDArray[np.float64]


class InsertionRig:
    """A six-axis arm with a needle in front of an eye; for one thread.

    The arm follows joint targets no faster than its joints can turn and never beyond their
    ranges. The same options, seed and commands give the same motion.
    """

    def __init__(self, config: RigConfig | None = None, seed: int = 0) -> None:
        """Build the rig and put it at home, ready to `step`."""
        self.config = config or RigConfig()
        self.model = build_model(self.config, seed)
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self.timestep_s = 1.0 / self.config.physics_hz
        self._low = np.radians(np.array(MECA500.joint_min_deg) + _RANGE_MARGIN_DEG)
        self._high = np.radians(np.array(MECA500.joint_max_deg) - _RANGE_MARGIN_DEG)
        rated = np.radians(np.array(MECA500.joint_speed_deg_s))
        self._speed = rated * min(self.config.joint_speed_share, _SPEED_SHARE)
        self._ids = {
            name: mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name)
            for name in ("flange", "tip", "port", "force")
        }
        self._tissue_body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, "tissue")
        self._globe_body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, "globe")
        self._sclera = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, "sclera")
        self._wall_bits = int(self.model.geom_conaffinity[self._sclera])
        self._needle_weight_n = float(self.model.body("needle").mass[0]) * 9.81
        self._radius_m = self.config.eye_radius_mm / 1e3
        tissue = self.model.actuator("tissue")
        self._tissue_lag_s = float(-tissue.biasprm[2] / tissue.gainprm[0])
        self.episode = -1
        self.reset(seed)

    def reset(self, seed: int, joints_deg: ArrayLike | None = None) -> None:
        """Start the next episode: another port, the arm at rest at home or at (6,) joint angles.

        Raises ValueError unless the angles are six finite numbers.
        """
        self.seed = int(seed)
        self.layout = Layout.from_seed(self.config, self.seed)
        self._tissue = tissue_motion(self.config, self.layout, unit_mm=1e3)
        place(self.model, self.config, self.layout)
        mujoco.mj_resetData(self.model, self.data)
        home = np.radians(_six_finite(HOME_DEG if joints_deg is None else joints_deg, "angles"))
        self._tissue_m = self._tissue.displacement(0.0)
        self.data.qpos[:6] = home
        self.data.qpos[9] = self._tissue_m
        self.data.ctrl[:6] = home
        self.data.ctrl[6] = self._tissue_m
        self.data.qvel[9] = self._tissue.speed(0.0)
        self._target = home.copy()
        self._pose: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        mujoco.mj_kinematics(self.model, self.data)
        from_centre = self.data.site_xpos[self._ids["tip"]] - self.data.xpos[self._globe_body]
        self._inside = float(from_centre @ from_centre) < self._radius_m**2
        self.model.geom_conaffinity[self._sclera] = 0 if self._inside else self._wall_bits
        mujoco.mj_forward(self.model, self.data)
        self.episode += 1

    def command_joints(self, joints_deg: ArrayLike) -> None:
        """Go to (6,) joint angles in degrees; beyond a joint's range means to its end.

        Raises ValueError unless they are six finite numbers.
        """
        wanted = _six_finite(joints_deg, "joint angles")
        self._target = np.clip(np.radians(wanted), self._low, self._high)
        self._pose = None

    def command_pose(self, pose: ArrayLike) -> None:
        """Bring the flange to a pose (6,): mm, then mobile XYZ Euler angles in degrees.

        Goes as near as the joint ranges allow. Raises ValueError unless the pose is six finite
        numbers and its position within 2 m.
        """
        wanted = _six_finite(pose, "pose values")
        if np.abs(wanted[:3]).max() > _POSE_LIMIT_MM:
            raise ValueError(f"a pose further away than {_POSE_LIMIT_MM:.0f} mm")
        # The flange's Euler angles turn with it: MuJoCo writes that in small letters.
        quat = np.zeros(4)
        mujoco.mju_euler2Quat(quat, np.radians(wanted[3:]), "xyz")
        self._pose = (wanted[:3] / 1e3, quat)

    def hold(self) -> None:
        """Stay at the joint angles the arm has now."""
        self._target = np.clip(self.data.qpos[:6].copy(), self._low, self._high)
        self._pose = None

    def step(self, substeps: int = 1) -> None:
        """Advance by `substeps` physics steps; targets and tissue move on once for all of them."""
        span = substeps * self.timestep_s
        if self._pose is not None:
            self._follow_pose(span)
        ctrl = self.data.ctrl
        reach = self._speed * span
        ctrl[:6] += np.minimum(np.maximum(self._target - ctrl[:6], -reach), reach)
        at = self.data.time + span
        self._tissue_m = self._tissue.displacement(at)
        # Speed fed forward: the tissue is where it should be, not a damper's lag behind.
        ctrl[6] = self._tissue_m + self._tissue_lag_s * self._tissue.speed(at)
        mujoco.mj_step(self.model, self.data, substeps)
        # mj_step leaves positions as they were before it integrated the last time.
        mujoco.mj_kinematics(self.model, self.data)
        self._open_or_close_wall()

    def refresh(self) -> None:
        """Work out where everything is after positions in `data` were written from outside."""
        mujoco.mj_kinematics(self.model, self.data)

    @property
    def time_s(self) -> float:
        """Simulated seconds since the last reset."""
        return float(self.data.time)

    @property
    def joints_deg(self) -> NDArray[np.float64]:
        """(6,) joint angles in degrees."""
        return np.asarray(np.degrees(self.data.qpos[:6]))

    @property
    def pose(self) -> NDArray[np.float64]:
        """(6,) the flange: x, y, z in mm and mobile XYZ Euler angles in degrees."""
        rotation = self.data.site_xmat[self._ids["flange"]].reshape(3, 3)
        position = self.data.site_xpos[self._ids["flange"]] * 1e3
        return np.concatenate([position, euler_xyz_deg(rotation)])

    @property
    def force_n(self) -> float:
        """Newtons along the needle, less its own weight; positive when the tip is pushed."""
        # The sensor gives what the hand exerts on the needle, along the needle's z: against a
        # push on the tip and against gravity's component there.
        rotation = self.data.site_xmat[self._ids["force"]]
        return float(self.data.sensordata[2]) - self._needle_weight_n * float(rotation[8])

    def read(self) -> Reading:
        """What is measured now."""
        tip = self.data.site_xpos[self._ids["tip"]].copy()
        port = self._ids["port"]
        axis = self.data.site_xmat[port].reshape(3, 3)[:, 2]
        along = tip - self.data.site_xpos[port]
        depth = float(along @ axis)
        lateral = math.sqrt(max(float(along @ along) - depth * depth, 0.0))
        inward = self.layout.axis
        # The tissue rests on the socket, not on the eye's wall: an eye pushed aside leaves it.
        rest = self.model.body_pos[self._tissue_body] * 1e3 + self.layout.eye_mm
        distance = float((rest - tip * 1e3) @ inward) + self._tissue_m * 1e3
        return Reading(
            time_s=self.time_s,
            distance_mm=distance,
            lateral_mm=lateral * 1e3,
            depth_mm=depth * 1e3,
            force_n=self.force_n,
            tissue_mm=self._tissue_m * 1e3,
            tip_mm=tip * 1e3,
        )

    def _open_or_close_wall(self) -> None:
        """Let the tip through the eye's wall at the port, and nowhere else.

        MuJoCo's sphere has no hole; the tip passes where the port's opening is, and moves freely
        for as long as it is inside.
        """
        tip = self.data.site_xpos[self._ids["tip"]]
        port = self._ids["port"]
        along = tip - self.data.site_xpos[port]
        depth = float(along @ self.data.site_xmat[port].reshape(3, 3)[:, 2])
        lateral_squared = float(along @ along) - depth * depth
        through = (
            lateral_squared < (self.config.port_radius_mm / 1e3) ** 2
            and abs(depth) < 0.5 * self._radius_m
        )
        if not through and self._inside:
            from_centre = tip - self.data.xpos[self._globe_body]
            through = float(from_centre @ from_centre) < self._radius_m**2
        if through != self._inside:
            self._inside = through
            self.model.geom_conaffinity[self._sclera] = 0 if through else self._wall_bits

    def _follow_pose(self, span_s: float) -> None:
        """One step of damped least squares from the present target towards the wanted pose."""
        assert self._pose is not None
        position, quat = self._pose
        model, data, site = self.model, self._scratch, self._ids["flange"]
        data.qpos[:6] = self._target
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        error = np.zeros(6)
        error[:3] = position - data.site_xpos[site]
        has, turn = np.zeros(4), np.zeros(4)
        mujoco.mju_mat2Quat(has, data.site_xmat[site])
        mujoco.mju_negQuat(has, has)
        mujoco.mju_mulQuat(turn, quat, has)
        mujoco.mju_quat2Vel(error[3:], turn, 1.0)
        # Far from the goal the linearization is worth only a small step.
        far = max(
            float(np.linalg.norm(error[:3])) / (_IK_STEP_MM / 1e3),
            float(np.linalg.norm(error[3:])) / math.radians(_IK_STEP_DEG),
            1.0,
        )
        error /= far
        jacobian = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        j = jacobian[:, :6]
        change = j.T @ np.linalg.solve(j @ j.T + _IK_DAMPING**2 * np.eye(6), error)
        # All joints slowed alike, so that the flange keeps its direction.
        fastest = float(np.max(np.abs(change) / (self._speed * span_s)))
        if fastest > 1.0:
            change /= fastest
        self._target = np.clip(self._target + change, self._low, self._high)


def _six_finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} are not numbers") from error
    if array.shape != (6,) or not np.isfinite(array).all():
        raise ValueError(f"{what} must be six finite numbers")
    return array
