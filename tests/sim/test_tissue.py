"""The tissue's motion: the regular one as it always was, the irregular one as it is promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common import cli
from sim import tissue
from sim.expert import Expert
from sim.layout import Layout, RigConfig
from sim.rig import InsertionRig
from sim.rig_server import ServerOptions
from sim.tissue import BAND, MOST, TissueMotion, tissue_motion

IRREGULAR = RigConfig(tissue="irregular")
AMPLITUDE_MM = IRREGULAR.tissue_amplitude_mm
STEP_S = 0.05
SECONDS = 20.0


def motion(seed: int, config: RigConfig = IRREGULAR, unit_mm: float = 1.0) -> TissueMotion:
    return tissue_motion(config, Layout.from_seed(config, seed), unit_mm)


@pytest.fixture(scope="module")
def moved() -> tuple[np.ndarray, np.ndarray]:
    """Displacements and speeds (seeds, times) in mm and mm/s at 1 Hz, each 0.05 s for 20 s."""
    times = np.arange(round(SECONDS / STEP_S)) * STEP_S
    motions = [motion(seed) for seed in range(200)]
    return (
        np.array([[one.displacement(at) for at in times] for one in motions]),
        np.array([[one.speed(at) for at in times] for one in motions]),
    )


@pytest.mark.parametrize("seed", [0, 7, 100_000])
@pytest.mark.parametrize(("amplitude_mm", "hz"), [(1.5, 1.0), (0.8, 1.3), (0.0, 1.0), (2.0, 0.0)])
def test_the_regular_motion_is_a_sine_to_the_last_bit(
    seed: int, amplitude_mm: float, hz: float
) -> None:
    config = RigConfig(tissue_amplitude_mm=amplitude_mm, tissue_hz=hz)
    phase = Layout.from_seed(config, seed).phase_rad
    in_mm, in_m = motion(seed, config), motion(seed, config, unit_mm=1e3)
    for time_s in (0.0, 0.123, 1.0, 14.9):
        angle = 2.0 * math.pi * hz * time_s + phase
        assert in_mm.displacement(time_s) == amplitude_mm * math.sin(angle)
        assert in_m.displacement(time_s) == amplitude_mm / 1e3 * math.sin(angle)
        speed = amplitude_mm / 1e3 * (2.0 * math.pi * hz) * math.cos(angle)
        assert in_m.speed(time_s) == speed


def test_the_usual_motion_is_the_regular_one_and_ports_lie_where_they_lie() -> None:
    assert RigConfig() == RigConfig(tissue="regular")
    one, other = (Layout.from_seed(config, 12) for config in (RigConfig(), IRREGULAR))
    assert one.port_mm.tolist() == other.port_mm.tolist()
    assert one.axis.tolist() == other.axis.tolist()
    assert one.phase_rad == other.phase_rad
    # Drawn before there were two motions.
    assert one.phase_rad == np.random.default_rng(12).uniform(0, 1, 8)[-1] * 2.0 * math.pi


def test_a_seed_is_an_irregular_motion() -> None:
    times = np.linspace(0.0, 15.0, 40)
    one, same, other = (
        np.array([motion(seed).displacement(at) for at in times]) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.7 and np.abs(one - other).max() > 1.0
    doubled = RigConfig(tissue="irregular", tissue_amplitude_mm=3.0)
    assert [motion(3, doubled).displacement(at) for at in times] == pytest.approx(2.0 * one)
    slower = RigConfig(tissue="irregular", tissue_hz=0.5)
    assert [motion(3, slower).displacement(2 * at) for at in times] == pytest.approx(one)
    in_m = motion(3, unit_mm=1e3)
    assert [1e3 * in_m.displacement(at) for at in times] == pytest.approx(one)
    assert 1e3 * in_m.speed(1.0) == pytest.approx(motion(3).speed(1.0))


def test_its_rms_is_that_of_a_swing(moved: tuple[np.ndarray, np.ndarray]) -> None:
    displacements, _ = moved
    rms = np.sqrt((displacements**2).mean())
    assert rms == pytest.approx(AMPLITUDE_MM / math.sqrt(2), rel=0.02)
    assert displacements.mean() == pytest.approx(0.0, abs=0.02)
    of_each = np.sqrt((displacements**2).mean(axis=1))
    assert of_each.min() > 0.8 and of_each.max() < 1.35


def test_it_is_for_moments_twice_as_fast_as_a_swing_ever_is(
    moved: tuple[np.ndarray, np.ndarray],
) -> None:
    _, speeds = moved
    assert np.sqrt((speeds**2).mean()) == pytest.approx(7.4, abs=0.1)
    share = (np.abs(speeds) > 2 * AMPLITUDE_MM * 2 * math.pi).mean()
    assert share == pytest.approx(0.014, abs=0.004)


def test_it_stays_within_its_bound(moved: tuple[np.ndarray, np.ndarray]) -> None:
    displacements, _ = moved
    most = np.abs(displacements).max()
    assert 1.2 * AMPLITUDE_MM < most <= MOST * AMPLITUDE_MM == pytest.approx(2.1)
    # Should all waves ever be at their highest together, too.
    together = tissue._Irregular(2.1, ((1.0, math.pi / 2),) * 12)
    assert 2.09 < together.displacement(0.0) <= 2.1


def test_its_band_is_what_is_said(moved: tuple[np.ndarray, np.ndarray]) -> None:
    displacements, _ = moved
    power = np.abs(np.fft.rfft(displacements * np.hanning(displacements.shape[1]))) ** 2
    share = power.mean(axis=0) / power.mean(axis=0).sum()
    hz = np.fft.rfftfreq(displacements.shape[1], STEP_S)
    inside = (hz > BAND[0] - 0.06) & (hz < BAND[1] + 0.06)
    assert share[inside].sum() > 0.97
    # Nothing sticks out of it: that would be foreseen.
    assert share[inside].max() < 3 * share[inside].mean()


@pytest.mark.parametrize(
    ("later_s", "autocorrelation", "unforeseen"),
    # The table of `tissue_motion`.
    [
        *((0.1, 0.78, 0.04), (0.2, 0.26, 0.31), (0.4, -0.44, 0.80)),
        *((0.8, -0.03, 0.98), (1.2, -0.05, 0.97), (1.6, -0.08, 0.99)),
    ],
)
def test_it_forgets_itself(
    moved: tuple[np.ndarray, np.ndarray], later_s: float, autocorrelation: float, unforeseen: float
) -> None:
    displacements, speeds = moved
    later = round(later_s / STEP_S)
    now, then = displacements[:, :-later].ravel(), displacements[:, later:].ravel()
    variance = (displacements**2).mean()
    assert (now * then).mean() / variance == pytest.approx(autocorrelation, abs=0.02)
    known = np.stack([now, speeds[:, :-later].ravel()], axis=1)
    best = known @ np.linalg.lstsq(known, then, rcond=None)[0]
    assert ((then - best) ** 2).mean() / variance == pytest.approx(unforeseen, abs=0.02)


@pytest.mark.parametrize(("later_s", "unforeseen"), [(0.4, 0.46), (0.8, 0.90)])
def test_who_remembers_longer_foresees_more_but_not_a_period(
    moved: tuple[np.ndarray, np.ndarray], later_s: float, unforeseen: float
) -> None:
    displacements, _ = moved
    ahead, past = round(later_s / STEP_S), round(2.0 / STEP_S)
    at = np.arange(past, displacements.shape[1] - ahead, 3)
    known = np.stack([displacements[:, at - k].ravel() for k in range(0, past, 2)], axis=1)
    then = displacements[:, at + ahead].ravel()
    best = known @ np.linalg.lstsq(known, then, rcond=None)[0]
    left = ((then - best) ** 2).mean() / (displacements**2).mean()
    assert left == pytest.approx(unforeseen, abs=0.03)


@pytest.mark.parametrize("kind", ["regular", "irregular"])
def test_the_speed_is_the_displacements_change(kind: str) -> None:
    one = motion(9, RigConfig(tissue=kind))  # type: ignore[arg-type]
    for at in np.linspace(0.0, 10.0, 60):
        change = (one.displacement(at + 1e-5) - one.displacement(at - 1e-5)) / 2e-5
        assert one.speed(at) == pytest.approx(change, abs=1e-5)


def test_rig_and_expert_agree_on_the_surface() -> None:
    rig = InsertionRig(IRREGULAR, seed=5)
    expert = Expert(rig.config, rig.layout, rig.joints_deg)
    surfaces = []
    for _ in range(1000):
        rig.step(2)
        reading = rig.read()
        surface = expert.surface_mm(rig.time_s)
        moved_mm = surface - IRREGULAR.tissue_depth_mm
        assert reading.tissue_mm == pytest.approx(moved_mm, abs=1e-9)
        # What the A-scan shows; the arm stands still at home, and nothing touches the eye.
        assert reading.distance_mm + reading.depth_mm == pytest.approx(surface, abs=0.02)
        # The surface that is felt is where the A-scan shows it.
        assert rig.data.qpos[9] * 1e3 == pytest.approx(moved_mm, abs=0.04)
        surfaces.append(surface)
    assert np.ptp(surfaces) > 2.0


def test_the_motion_is_the_episodes() -> None:
    rig = InsertionRig(IRREGULAR, seed=5)
    rig.reset(6)
    rig.step(130)
    assert rig.read().tissue_mm == pytest.approx(motion(6).displacement(0.1), abs=1e-9)


@pytest.mark.parametrize("value", ["", "random", "Regular", 1, True, None, ["regular"]])
def test_a_motion_that_there_is_not_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="tissue must be regular or irregular"):
        RigConfig.from_dict({"tissue": value})


def test_the_rig_takes_it_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.parse(ServerOptions, []).rig == RigConfig()
    assert cli.parse(ServerOptions, ["--tissue", "irregular"]).rig == IRREGULAR
    with pytest.raises(SystemExit) as leaving:
        cli.parse(ServerOptions, ["--tissue", "wild"])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wild" in error and "irregular" in error


def test_the_gymnasium_environment_takes_it() -> None:
    pytest.importorskip("gymnasium")
    from sim.environment import InsertionEnv

    env = InsertionEnv(views=(), rig={"tissue": "irregular"})
    env.reset(seed=8)
    assert env._rig.read().tissue_mm == pytest.approx(
        motion(8).displacement(env._rig.time_s), abs=1e-9
    )
    env.close()
    with pytest.raises(ValueError, match="tissue must be"):
        InsertionEnv(views=(), rig={"tissue": "wild"})
