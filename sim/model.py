"""The insertion rig as a MuJoCo model: arm, needle on a force sensor, eye with a port, cameras.

In the model lengths are metres and angles radians; everywhere else millimetres and degrees.
The needle touches three things: the eye's wall, the port's rim and the tissue behind it. The arm
itself, the table and the stand are there for the eye only and collide with nothing.
"""

from __future__ import annotations

import math

import numpy as np

from common.kinematics import MECA500
from sim.engine import mujoco
from sim.layout import (
    HOME_DEG,
    HUB_MM,
    NEEDLE_MM,
    SENSOR_MM,
    TIP_FROM_FLANGE_MM,
    Layout,
    RigConfig,
)
from sim.scenery import MATERIALS, VIEWS, cameras, look, room
from sim.scenery import numbers as _v

__all__ = ["HOME_DEG", "VIEWS", "Layout", "RigConfig", "build_model", "place"]

# Reflected inertia of each joint (kg m²) and the bandwidth of its position loop. The Meca500's
# own figures are not published; at 30 Hz it follows a target within about 10 ms and a few newtons
# at the needle move it by less than 0.1 mm, as a geared arm's stiffness would.
_ARMATURE = (0.10, 0.10, 0.08, 0.03, 0.03, 0.02)
_LOOP_HZ = 30.0

# MuJoCo's contacts are as stiff as the bodies that meet are heavy: lighter ones than these would
# let the needle in further than their springs do.
_EYE_KG = 0.01
_TISSUE_KG = 0.005
# Of eye and tissue: settles within one swing, and costs little force when they are pushed fast.
_DAMPING_RATIO = 0.5

_TIP_RADIUS = 0.0004
_RIM_RADIUS = 0.0006
# Contact bits: tip, shaft.
_TIP, _SHAFT = 1, 2


def _arm(tool: str) -> str:
    """The six links inside each other; `tool` is put on the flange."""
    g = MECA500
    d1, a2, a3 = g.d1_mm / 1e3, g.a2_mm / 1e3, g.a3_mm / 1e3
    d4, d6 = g.d4_mm / 1e3, g.d6_mm / 1e3
    axes = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
    joints = [
        f'<joint name="joint{i + 1}" axis="{axes[i]}" armature="{_ARMATURE[i]}" '
        f'range="{math.radians(g.joint_min_deg[i])!r} {math.radians(g.joint_max_deg[i])!r}"/>'
        for i in range(6)
    ]
    return f"""
    <geom class="arm" type="box" size="0.052 0.052 0.008" pos="0 0 0.008" material="joint"/>
    <geom class="arm" type="cylinder" size="0.043" fromto="0 0 0.016 0 0 0.072"/>
    <body name="link1" childclass="arm" gravcomp="1">{joints[0]}
      <geom type="cylinder" size="0.0435" fromto="0 0 0.072 0 0 0.078" material="joint"/>
      <geom type="cylinder" size="0.041" fromto="0 0 0.078 0 0 0.110"/>
      <geom type="cylinder" size="0.036" fromto="0 -0.030 {_v(d1)} 0 0.030 {_v(d1)}"/>
      <geom type="box" size="0.030 0.030 0.015" pos="0 0 0.115"/>
      <body name="link2" pos="0 0 {_v(d1)}" gravcomp="1">{joints[1]}
        <geom type="cylinder" size="0.029" fromto="0 -0.034 0 0 0.034 0" material="joint"/>
        <geom type="capsule" size="0.025" fromto="0 0.018 0.010 0 0.018 {_v(a2 - 0.008)}"/>
        <geom type="capsule" size="0.025" fromto="0 -0.018 0.010 0 -0.018 {_v(a2 - 0.008)}"/>
        <geom type="cylinder" size="0.030" fromto="0 -0.040 {_v(a2)} 0 0.040 {_v(a2)}"/>
        <body name="link3" pos="0 0 {_v(a2)}" gravcomp="1">{joints[2]}
          <geom type="cylinder" size="0.023" fromto="0 -0.044 0 0 0.044 0" material="joint"/>
          <geom type="capsule" size="0.026" fromto="0 0 0.005 0 0 {_v(a3)}"/>
          <geom type="cylinder" size="0.0265" fromto="0 0 {_v(a3)} 0.042 0 {_v(a3)}"/>
          <body name="link4" pos="0 0 {_v(a3)}" gravcomp="1">{joints[3]}
            <geom type="cylinder" size="0.0268" fromto="0.042 0 0 0.047 0 0" material="joint"/>
            <geom type="cylinder" size="0.0255" fromto="0.047 0 0 0.080 0 0"/>
            <geom type="capsule" size="0.010" fromto="0.080 0.017 0 {_v(d4)} 0.017 0"/>
            <geom type="capsule" size="0.010" fromto="0.080 -0.017 0 {_v(d4)} -0.017 0"/>
            <geom type="cylinder" size="0.019" fromto="{_v(d4)} -0.026 0 {_v(d4)} 0.026 0"/>
            <body name="link5" pos="{_v(d4)} 0 0" gravcomp="1">{joints[4]}
              <geom type="cylinder" size="0.014" fromto="0 -0.029 0 0 0.029 0" material="joint"/>
              <geom type="cylinder" size="0.0175" fromto="0.004 0 0 0.046 0 0"/>
              <body name="link6" pos="{_v(d6)} 0 0" gravcomp="1">{joints[5]}
                <geom type="cylinder" size="0.0178" fromto="-0.024 0 0 -0.020 0 0"
                      material="joint"/>
                <geom type="cylinder" size="0.0165" fromto="-0.020 0 0 -0.004 0 0"/>
                <geom type="cylinder" size="0.0125" fromto="-0.004 0 0 0 0 0" material="metal"/>
                <site name="flange" quat="{_v(math.sqrt(0.5))} 0 {_v(math.sqrt(0.5))} 0"
                      group="4"/>
                {tool}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _tool() -> str:
    """Force sensor, hub and needle; z points out of the flange, along the needle."""
    sensor, hub = SENSOR_MM / 1e3, HUB_MM / 1e3
    tip = TIP_FROM_FLANGE_MM / 1e3 - sensor
    assert math.isclose(tip - hub, NEEDLE_MM / 1e3)
    half = _v(math.sqrt(0.5))
    # The wrist camera looks past the hub at the needle's tip, from the side away from the table.
    eye = np.array([-0.034, 0.0, -0.012])
    view = look(eye, np.array([0.0, 0.0, sensor + tip + 0.004]), up=np.array([0.0, 0.0, -1.0]))
    return f"""
                <body name="sensor" quat="{half} 0 {half} 0" childclass="arm" gravcomp="1">
                  <geom type="cylinder" size="0.0135" fromto="0 0 0 0 0 0.006" material="joint"/>
                  <geom type="cylinder" size="0.0137" fromto="0 0 0.006 0 0 0.008"
                        material="accent"/>
                  <geom type="cylinder" size="0.0135" fromto="0 0 0.008 0 0 {_v(sensor)}"
                        material="joint"/>
                  <geom type="box" size="0.006 0.009 0.007" pos="-0.034 0 -0.021" material="joint"/>
                  <geom type="box" size="0.012 0.004 0.004" pos="-0.024 0 -0.016"
                        material="metal"/>
                  <camera name="View5" pos="{_v(*eye)}" xyaxes="{view}" fovy="40"/>
                  <body name="needle" pos="0 0 {_v(sensor)}" gravcomp="0">
                    <inertial pos="0 0 {_v(hub)}" mass="0.0005" diaginertia="1e-7 1e-7 3e-8"/>
                    <site name="force" group="4"/>
                    <geom type="cylinder" size="0.0045" fromto="0 0 0 0 0 0.004" material="metal"/>
                    <geom type="cylinder" size="0.0026" fromto="0 0 0.004 0 0 {_v(hub)}"
                          material="accent"/>
                    <geom name="shaft" type="capsule" size="{_TIP_RADIUS}" material="steel"
                          fromto="0 0 {_v(hub)} 0 0 {_v(tip - _TIP_RADIUS)}" contype="{_SHAFT}"/>
                    <geom name="tip" type="sphere" size="{_TIP_RADIUS}" material="steel"
                          pos="0 0 {_v(tip - _TIP_RADIUS)}" contype="{_TIP}"/>
                    <site name="tip" pos="0 0 {_v(tip)}" group="4"/>
                  </body>
                </body>"""


def _phantom(config: RigConfig) -> str:
    """Stand, eye on springs, port and tissue; `place` puts them where a seed wants them."""
    r = config.eye_radius_mm / 1e3
    s = r / 0.012  # the details are drawn for an eye of 24 mm
    stiffness = config.eye_stiffness_n_mm * 1e3
    damping = 2 * _DAMPING_RATIO * math.sqrt(stiffness * _EYE_KG)
    slide = f'stiffness="{_v(stiffness)}" damping="{_v(damping)}"'
    inner = config.port_radius_mm / 1e3
    rim = ""
    count = 12
    radius = inner + _RIM_RADIUS
    for k in range(count):
        a, b = 2 * math.pi * k / count, 2 * math.pi * (k + 1) / count
        ends = [radius * math.cos(a), radius * math.sin(a), -0.0003]
        ends += [radius * math.cos(b), radius * math.sin(b), -0.0003]
        rim += f'\n        <geom class="rim" fromto="{_v(*ends)}"/>'
    return f"""
    <body name="phantom" childclass="show">
      <geom type="cylinder" size="0.030" fromto="0 0 -0.160 0 0 {_v(-0.010 - r * 0.3)}"
            material="stand"/>
      <geom type="mesh" mesh="drape" pos="0 0 {_v(-0.45 * r - 0.007)}" material="drape"/>
      <geom type="cylinder" size="{_v(1.10 * r)}"
            fromto="0 0 {_v(-0.45 * r - 0.008)} 0 0 {_v(-0.45 * r + 0.004)}" material="stand"/>
      <body name="globe" gravcomp="1">
        <inertial pos="0 0 0" mass="{_EYE_KG}" diaginertia="1e-5 1e-5 1e-5"/>
        <joint name="eye_x" type="slide" axis="1 0 0" {slide}/>
        <joint name="eye_y" type="slide" axis="0 1 0" {slide}/>
        <joint name="eye_z" type="slide" axis="0 0 1" {slide}/>
        <geom name="sclera" type="sphere" size="{_v(r)}" group="4" conaffinity="{_TIP}"/>
        <geom type="mesh" mesh="ball" material="sclera"/>
        <geom type="ellipsoid" size="{_v(0.0064 * s, 0.0064 * s, 0.0018 * s)}"
              pos="0 0 {_v(0.0102 * s)}" material="limbus"/>
        <geom type="ellipsoid" size="{_v(0.0058 * s, 0.0058 * s, 0.0019 * s)}"
              pos="0 0 {_v(0.0104 * s)}" material="iris"/>
        <geom type="ellipsoid" size="{_v(0.0038 * s, 0.0038 * s, 0.0015 * s)}"
              pos="0 0 {_v(0.0109 * s)}" material="collarette"/>
        <geom type="ellipsoid" size="{_v(0.0024 * s, 0.0024 * s, 0.0012 * s)}"
              pos="0 0 {_v(0.0113 * s)}" material="pupil"/>
        <body name="port">{rim}
        <geom type="mesh" mesh="rim" pos="0 0 -0.0003" material="port"/>
          <site name="port" group="4"/>
        </body>
      </body>
      <body name="tissue" gravcomp="1">
        <inertial pos="0 0 0" mass="{_TISSUE_KG}" diaginertia="1e-7 1e-7 1e-7"/>
        <joint name="tissue" type="slide" axis="0 0 1"/>
        <geom name="tissue" type="cylinder" size="{_v(0.6 * r)}" fromto="0 0 0 0 0 0.0012"
              material="tissue" conaffinity="{_TIP}"/>
      </body>
    </body>"""


def _meshes(config: RigConfig) -> str:
    """Round things seen from near, finer than the few facets that every other geom gets.

    Vertices are what a picture costs most when rendered without a GPU.
    """
    r = config.eye_radius_mm / 1e3
    ring = config.port_radius_mm / 1e3 + _RIM_RADIUS
    return f"""<mesh name="ball" builtin="supersphere" params="24 1 1" scale="{_v(r, r, r)}"/>
    <mesh name="drape" builtin="supersphere" params="28 1 1" scale="0.060 0.060 0.010"/>
    <mesh name="rim" builtin="supertorus" params="14 {_v(_RIM_RADIUS / ring)} 1 1"
          scale="{_v(ring, ring, ring)}"/>"""


def _actuators(config: RigConfig) -> str:
    omega = 2 * math.pi * _LOOP_HZ
    lines = [
        f'<position name="joint{i + 1}" joint="joint{i + 1}" kp="{_v(a * omega * omega)}" '
        f'kv="{_v(2 * a * omega)}"/>'
        for i, a in enumerate(_ARMATURE)
    ]
    # The tissue is a spring whose rest position moves: pushing it costs its stiffness.
    kp = config.tissue_stiffness_n_mm * 1e3
    kv = 2 * _DAMPING_RATIO * math.sqrt(kp * _TISSUE_KG)
    lines.append(f'<position name="tissue" joint="tissue" kp="{_v(kp)}" kv="{_v(kv)}"/>')
    return "\n    ".join(lines)


def build_model(
    config: RigConfig | None = None, seed: int = 0, width: int = 1920, height: int = 1080
) -> mujoco.MjModel:
    """The rig's model, with the port where `seed` puts it.

    `width` and `height` bound the pictures that can be rendered from it. qpos is six joints, the
    eye's displacement in its socket (3) and the tissue's along the port's axis (1).
    """
    config = config or RigConfig()
    usual = Layout.from_seed(RigConfig(port_spread=0.0), 0).eye_mm / 1e3
    xml = f"""
<mujoco model="insertion rig">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{1.0 / config.physics_hz!r}" integrator="implicitfast" cone="pyramidal"/>
  <statistic center="0.2 0 0.15" extent="0.6" meansize="0.03"/>
  <visual>
    <global offwidth="{int(width)}" offheight="{int(height)}"/>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="4" numquads="1"/>
    <headlight ambient="0.38 0.38 0.39" diffuse="0.22 0.22 0.22" specular="0.1 0.1 0.1"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <asset>{MATERIALS}
    {_meshes(config)}
  </asset>
  <default>
    <default class="show"><geom contype="0" conaffinity="0" condim="1" group="1"
        solref="0.002 1" solimp="0.95 0.99 0.0002"/>
      <default class="arm"><geom material="shell" density="600"/></default>
      <default class="rim"><geom type="capsule" size="{_RIM_RADIUS}" group="4"
        conaffinity="{_TIP | _SHAFT}"/></default>
    </default>
  </default>
  <worldbody>
    <light directional="true" castshadow="false" dir="-0.4 0.5 -1" diffuse="0.50 0.50 0.48"
           specular="0.35 0.35 0.35"/>
    <light directional="true" castshadow="false" dir="0.6 -0.7 -0.5" diffuse="0.18 0.19 0.22"
           specular="0.1 0.1 0.1"/>
    <geom class="show" type="box" size="0.6 0.5 0.02" pos="0.2 0 -0.02" material="table"/>
    {room()}
    {cameras(usual)}
    {_arm(_tool())}
    {_phantom(config)}
  </worldbody>
  <actuator>
    {_actuators(config)}
  </actuator>
  <sensor><force name="force" site="force"/></sensor>
</mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    place(model, config, Layout.from_seed(config, seed))
    return model


def place(model: mujoco.MjModel, config: RigConfig, layout: Layout) -> None:
    """Put the eye, the port and the tissue of a compiled model where `layout` says.

    Cheaper than compiling anew, and a renderer keeps its GL context.
    """
    quat = np.zeros(4)
    mujoco.mju_quatZ2Vec(quat, layout.axis)
    model.body("phantom").pos[:] = layout.eye_mm / 1e3
    model.body("port").pos[:] = layout.port_mm / 1e3
    model.body("port").quat[:] = quat
    surface = layout.port_mm + layout.axis * config.tissue_depth_mm
    model.body("tissue").pos[:] = surface / 1e3
    model.body("tissue").quat[:] = quat
