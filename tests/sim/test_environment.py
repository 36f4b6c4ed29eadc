"""The rig as a gymnasium environment: spaces, time, what ends an episode and what it pays."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="pip install '.[gym]'")

import gymnasium
from gymnasium.utils.env_checker import check_env

from sim.environment import ENVIRONMENT_ID, WINDOW, InsertionEnv
from sim.expert import joints_for_tip
from sim.layout import RigConfig
from sim.task import DISTANCE_MM
from tests.support import ROOT

SMALL = {"width": 32, "height": 24}


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes environments without pictures, unless they are asked for."""
    made: list[InsertionEnv] = []

    def start(**options: Any) -> InsertionEnv:
        made.append(InsertionEnv(**({"views": ()} | options)))
        return made[-1]

    yield start
    for env in made:
        env.close()


@pytest.mark.parametrize("options", [{}, {"action_space_name": "joint_delta", "gripper": True}])
def test_gymnasiums_own_checks_pass(rendering: None, options: dict[str, Any]) -> None:
    env = gymnasium.make(ENVIRONMENT_ID, **SMALL, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Advice about scaling, which is not for a robot's own units.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env.unwrapped)
    env.close()


def test_an_observation_is_what_the_space_says(rendering: None, make: Any) -> None:
    env = make(views=("View2", "View4"), **SMALL)
    seen, told = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    assert list(seen["pixels"]) == ["View2", "View4"]
    assert seen["pixels"]["View2"].shape == (24, 32, 3)
    assert seen["sensor"].shape == (WINDOW, 1026)
    assert (seen["sensor"][:, 1:].max(axis=1) > 0.1).all(), "the window is full from the first"
    assert told["is_success"] is False
    shown = env.render()
    assert (shown == seen["pixels"]["View2"]).all()
    # RGB: the drape round the eye is green-blue, never red.
    picture = make(views=("View4",), width=160, height=96).reset(seed=3)[0]["pixels"]["View4"]
    corner = picture[:8, :8].reshape(-1, 3).mean(axis=0)
    assert corner[2] > corner[0] + 20


def test_a_seed_is_the_same_episode_and_another_is_not(make: Any) -> None:
    one, other = make(), make()
    rng = np.random.default_rng(0)
    first, _ = one.reset(seed=7)
    second, _ = other.reset(seed=7)
    for _ in range(5):
        action = first["agent_pos"] + rng.uniform(-2, 2, 6).astype(np.float32)
        first, paid, *_ = one.step(action)
        second, paid_too, *_ = other.step(action)
        assert (first["agent_pos"] == second["agent_pos"]).all()
        assert (first["sensor"] == second["sensor"]).all()
        assert paid == paid_too
    assert not np.allclose(one.reset(seed=8)[0]["sensor"], other.reset(seed=7)[0]["sensor"])


@pytest.mark.parametrize("hz", [10.0, 30.0, 100.0])
def test_time_is_kept_at_every_rate(make: Any, hz: float) -> None:
    env = make(control_hz=hz, episode_s=1.0)
    seen, told = env.reset(seed=0)
    began = told["time_s"]
    steps = 0
    while True:
        before = seen["sensor"]
        seen, _, terminated, truncated, told = env.step(env.joints_deg)
        steps += 1
        new = round(650 / hz)
        kept = WINDOW - new
        if kept > 3:  # the window moves on by the samples of a step, one more or less
            now = seen["sensor"]
            ways = [np.array_equal(now[:k], before[-k:]) for k in range(kept - 1, kept + 2)]
            assert any(ways)
        if terminated or truncated:
            break
    assert (steps, terminated, truncated) == (round(hz), False, True)
    assert told["time_s"] - began == pytest.approx(1.0, abs=2 / 1300)


def test_joints_go_where_they_are_sent_and_not_further(make: Any) -> None:
    env = make()
    start = env.reset(seed=0)[0]["agent_pos"]
    wanted = start.copy()
    wanted[0] += 1.0
    seen = start
    for _ in range(5):
        seen, *_ = env.step(wanted)
    assert seen["agent_pos"] == pytest.approx(wanted, abs=0.05)
    delta = make(action_space_name="joint_delta")
    start = delta.reset(seed=0)[0]["agent_pos"]
    seen, *_ = delta.step(np.array([0.5, 0, 0, 0, 0, 0], np.float32))
    assert 0.2 < seen["agent_pos"][0] - start[0] < 0.8
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full(6, np.nan, np.float32))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.zeros(7, np.float32))


@pytest.mark.parametrize("space", ["joint_absolute", "joint_delta"])
def test_an_action_is_a_motion_over_the_whole_period(make: Any, space: str) -> None:
    """Ten degrees a second in steps of a degree: the arm never jumps ahead and stands."""
    env = make(control_hz=10.0, action_space_name=space)
    start = env.reset(seed=0)[0]["agent_pos"].astype(float)
    rig, seen = env.unwrapped._rig, []
    step = rig.step
    rig.step = lambda substeps: (step(substeps), seen.append(rig.joints_deg[0]))[0]
    one = np.array([1.0, 0, 0, 0, 0, 0])
    for number in range(1, 6):
        env.step((one if env._delta else start + number * one).astype(np.float32))
    speeds = np.diff(seen) * 650.0
    settled = speeds[len(speeds) // 2 :]
    assert settled.min() > 6.0 and settled.max() < 14.0


def test_a_slow_arm_follows_from_where_it_is(make: Any) -> None:
    """What it could not reach is no place to begin the next line at."""
    env = make(control_hz=10.0, rig=RigConfig(joint_speed_share=0.05))
    start = env.reset(seed=0)[0]["agent_pos"].astype(float)
    away = start + np.array([60.0, 0, 0, 0, 0, 0])
    seen, *_ = env.step(away.astype(np.float32))
    assert seen["agent_pos"][0] - start[0] < 5.0
    for _ in range(3):
        seen, *_ = env.step(start.astype(np.float32))
    assert seen["agent_pos"] == pytest.approx(start, abs=0.3)


def test_success_is_the_judges_and_pays_one(make: Any) -> None:
    """The tip is brought to its place and the tissue stands still: three seconds, and done."""
    env = make(rig=RigConfig(tissue_amplitude_mm=0.0), control_hz=50.0)
    seen, _ = env.reset(seed=1)
    layout, config = env.unwrapped._rig.layout, env.unwrapped._rig.config
    at = layout.eye_mm + layout.port_mm
    goal = at + layout.axis * (config.tissue_depth_mm - DISTANCE_MM)
    above = at - layout.axis * 3.0
    paid, done = 0.0, False
    for place, steps in ((above, 60), (goal, 400)):
        joints = joints_for_tip(place, layout.axis, seen["agent_pos"].astype(np.float64))
        for step in range(steps):
            share = min((step + 1) / 50, 1.0)
            target = seen_from(env, joints, share)
            seen, reward, terminated, truncated, told = env.step(target)
            paid += reward
            if terminated or truncated:
                done = True
                break
        if done:
            break
    assert terminated and not truncated, told
    assert told["is_success"] and told["reason"] == ""
    assert told["rms_mm"] < 0.5 and told["force_n"] < 3.0
    assert 1.0 < paid < 1.1 + 1e-6, "one for success, less than a tenth for coming near"


def seen_from(env: InsertionEnv, goal: np.ndarray, share: float) -> np.ndarray:
    """Part of the way from where the arm is."""
    here = env.joints_deg
    return (here + (goal - here) * share).astype(np.float32)


def test_force_ends_an_episode(make: Any) -> None:
    stiff = RigConfig(eye_stiffness_n_mm=5.0, tissue_amplitude_mm=0.0, port_spread=0.0)
    env = make(rig=stiff, episode_s=10.0)
    seen, _ = env.reset(seed=0)
    layout = env.unwrapped._rig.layout
    side = np.cross(layout.axis, [0.0, 0.0, 1.0])
    beside = layout.eye_mm + layout.port_mm + 3.5 * side / np.linalg.norm(side)
    here = seen["agent_pos"].astype(float)
    # From above: a straight way from home would lead through the port.
    above, deep = (
        joints_for_tip(beside + layout.axis * depth, layout.axis, here) for depth in (-4.0, 6.0)
    )
    for goal in [above] * 5 + [deep] * 95:
        _, _, terminated, truncated, told = env.step(goal.astype(np.float32))
        if terminated or truncated:
            break
    assert terminated and told["reason"] == "force" and told["force_n"] >= 3.0
    assert told["is_success"] is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"control_hz": 5}, "10 to 100"),
        ({"control_hz": float("nan")}, "10 to 100"),
        ({"action_space_name": "pose"}, "joint_absolute or joint_delta"),
        ({"episode_s": 0}, "episode_s"),
        ({"views": ("View9",)}, "views are some of"),
        ({"width": 4}, "cannot be rendered"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"rig": {"tissue_hz": 99}}, "tissue_hz"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InsertionEnv(**({"views": ()} | options))


def test_the_rest_of_the_rig_needs_no_gymnasium() -> None:
    told = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import sim.rig, sim.task, sim.rendering, sim.drivers\n"
        "try:\n    import sim.environment\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", told],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert out.stdout.strip().endswith("pip install '.[gym,sim]'"), out.stderr
