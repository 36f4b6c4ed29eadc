"""The virtual rig and the three architectures on it, with a policy that knows where the port is."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from policies.base import ActionChunk, PolicySpec
from policies.flow import FlowPolicy, UnderWay
from scripts import study_latency
from scripts.closed_loop import rig as virtual
from scripts.closed_loop.chunks import Queueing, run_chunks
from scripts.closed_loop.dual_rate import run_dual_rate
from scripts.closed_loop.episode import run_episode
from scripts.closed_loop.oracle import OraclePolicy, surface_mm
from scripts.closed_loop.rig import START_S, VirtualRig
from scripts.closed_loop.running import Latencies
from scripts.closed_loop.score import ScoreOptions
from senders.drivers import DriverError
from sim import rig_server
from sim.ascan import synthesize
from sim.layout import HOME_DEG
from sim.rendering import RigRenderer
from sim.rig import InsertionRig


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "serving")
    caplog.set_level(logging.ERROR, "senders")


@pytest.fixture(scope="module")
def whole() -> Iterator[VirtualRig]:
    """A rig whose episodes last long enough for a success and its tail."""
    yield from _made(ScoreOptions(limit_s=9.0))


@pytest.fixture(scope="module")
def short() -> Iterator[VirtualRig]:
    """One whose episodes are over after 2 s."""
    yield from _made(ScoreOptions(limit_s=2.0))


def _made(options: ScoreOptions) -> Iterator[VirtualRig]:
    try:
        rig = VirtualRig(score_options=options)
    except DriverError as error:
        pytest.skip(str(error))
    yield rig
    rig.close()


def test_the_clocks_are_those_of_the_real_programs(short: VirtualRig) -> None:
    assert virtual.SUBSTEPS == rig_server._SUBSTEPS
    assert virtual.SAMPLE_EVERY == rig_server._SAMPLE_EVERY
    short.reset(3)
    short.advance_to(1.0)
    assert short.rig.time_s == pytest.approx(1.0, abs=1 / 1300)
    assert short.published_at == pytest.approx(1.0)
    # 650 samples a second, in datagrams of ten; 100 robot states, 30 pictures.
    assert short.sensor.newest == 649
    assert short.sensor.taken_at(649) == pytest.approx(1.0, abs=1e-9)
    assert short.robot().send_timestamp == pytest.approx(1.0)
    assert 1.0 - 1 / 30 <= short.sight().captured_at <= 1.0


def test_physics_is_the_rigs_own(short: VirtualRig) -> None:
    """What the commands do is what they do to a rig that is stepped by hand."""
    short.reset(5)
    target = np.array(HOME_DEG) + 2.0
    short.move_joints(target)
    short.advance_to(0.5)
    plain = InsertionRig(short.rig.config, 5)
    ticks = round(0.5 * 260)
    start = round(START_S * 260)
    for tick in range(ticks):
        if tick == start:
            plain.command_joints(target)
        plain.step(5)
    assert np.abs(short.rig.joints_deg - plain.joints_deg).max() < 1e-3
    assert np.abs(plain.joints_deg - np.array(HOME_DEG)).max() > 1.9


def test_pictures_are_of_their_own_instant(short: VirtualRig) -> None:
    short.reset(1)
    sight = short.sight()
    at_once = short.pictures(["View4"], sight)["View4"]
    short.move_joints(np.array(HOME_DEG) + 3.0)
    short.advance_to(0.8)
    later = short.pictures(["View4"], sight)["View4"]
    assert np.array_equal(at_once, later)
    assert at_once.shape == (360, 640, 3) and at_once.dtype == np.uint8
    now = short.pictures(["View4"])["View4"]
    assert np.abs(now.astype(int) - at_once).max() > 50
    # The drawing is the renderer's, in RGB; JPEG changes it a little.
    plain = InsertionRig(short.rig.config, 1)
    with RigRenderer(plain.model, 640, 360) as renderer:
        drawn = cv2.cvtColor(renderer.render(plain.data, ["View4"])["View4"], cv2.COLOR_BGR2RGB)
    assert np.abs(drawn.astype(int) - at_once).mean() < 3.0


def test_windows_are_made_of_what_was_measured(short: VirtualRig) -> None:
    short.reset(2)
    window = short.sensor.window()
    assert window.shape == (65 - 5, 1026)  # six whole datagrams by now
    short.advance_to(0.5)
    window = short.sensor.window()
    assert window.shape == (65, 1026) and window.dtype == np.float32
    newest = short.sensor.newest
    short.advance_to(1.0)
    assert np.array_equal(short.sensor.window(newest), window)
    assert not np.array_equal(short.sensor.window(), window)
    distance = short.reading.distance_mm
    assert surface_mm(short.sensor.window()[-8:, 1:]) == pytest.approx(distance, abs=0.15)


def test_the_oracle_finds_the_surface() -> None:
    rng = np.random.default_rng(0)
    for distance in (0.5, 2.0, 7.3, 12.0):
        assert surface_mm(synthesize(np.full(12, distance), rng)) == pytest.approx(
            distance, abs=0.1
        )
    assert math.isnan(surface_mm(synthesize(np.full(12, 30.0), rng)))


def test_commands_go_through_the_receivers_limits_and_the_executor(short: VirtualRig) -> None:
    short.reset(4)
    rows = np.tile(np.array([*HOME_DEG, 0.0], np.float32), (4, 1))
    rows[:, 0] += 30.0
    assert "joint_speed" in short.command(rows, "joint_position", 0.1)
    short.advance_to(START_S + 0.1)
    moved = short.robot().joints[0] - HOME_DEG[0]
    assert 1.0 < moved < 5.0  # 45 degrees a second at most, over what is left of 0.1 s
    # Nothing more comes: the watchdog stops the arm, though the chunk goes on for 0.4 s.
    short.advance_to(START_S + 0.33)
    stopped = short.robot().joints[0]
    short.advance_to(START_S + 0.6)
    assert short.robot().joints[0] == pytest.approx(stopped, abs=0.5)
    assert stopped - HOME_DEG[0] < 16.0
    with pytest.raises(ValueError, match="not finite"):
        short.command(np.full((2, 7), np.nan, np.float32), "joint_position", 0.1)


def test_a_hold_stops_the_arm(short: VirtualRig) -> None:
    short.reset(4)
    rows = np.tile(np.array([*HOME_DEG, 0.0], np.float32), (4, 1))
    rows[:, 0] += 30.0
    short.command(rows, "joint_position", 0.1)
    short.advance_to(START_S + 0.1)
    short.hold("test")
    short.advance_to(START_S + 0.2)
    at = short.robot().joints[0]
    short.advance_to(START_S + 0.5)
    assert short.robot().joints[0] == pytest.approx(at, abs=0.1)


@pytest.mark.parametrize("latency_ms", [0.0, 381.0])
def test_dual_rate_succeeds_at_any_latency_and_synchronous_does_not(
    whole: VirtualRig, latency_ms: float
) -> None:
    oracle = OraclePolicy(whole.rig)
    dual = run_episode(whole, oracle, "dual-4", latency_ms, 11)
    assert dual.success, dual
    assert dual.rms_mm < 0.3
    assert dual.end_s == pytest.approx(dual.done_s + 3.0, abs=0.03)
    sync = run_episode(whole, oracle, "sync", latency_ms, 11)
    assert not sync.success and sync.reason in ("distance", "not held", "never inside")


def test_an_episode_is_the_same_whatever_was_before_it(short: VirtualRig) -> None:
    for name in ("dual-2", "async-weighted_average"):
        first = run_episode(short, OraclePolicy(short.rig), name, 100.0, 21)
        policy = OraclePolicy(short.rig)
        run_episode(short, policy, "sync", 200.0, 22)
        again = run_episode(short, policy, name, 100.0, 21)
        assert repr(first) == repr(again)


class Spying(OraclePolicy):
    """Writes down what it was asked, and stands still."""

    def __init__(self, rig: VirtualRig) -> None:
        super().__init__(rig.rig)
        self.virtual = rig
        self.encoded_at: list[float] = []
        self.acted_on: list[tuple[float, object]] = []

    def encode(self, images: object, task: str) -> object:
        assert isinstance(images, dict) and list(images) == ["View4"]
        # Of 640 x 360, at half size as the receiver decodes for pictures of 320 x 180.
        assert images["View4"].shape == (180, 320, 3)
        self.encoded_at.append(self.virtual.time_s)
        return len(self.encoded_at)

    def act(self, features, sensor, robot, previous) -> ActionChunk:  # type: ignore[no-untyped-def]
        self.acted_on.append((self.virtual.time_s, features))
        rows = np.tile(np.array([*HOME_DEG, 0.0], np.float32), (16, 1))
        return ActionChunk(rows, rows)


@pytest.mark.parametrize("reuse", [1, 4])
def test_without_latency_features_serve_just_as_often_as_they_may(
    short: VirtualRig, reuse: int
) -> None:
    short.reset(1)
    policy = Spying(short)
    tally = run_dual_rate(short, policy, Latencies(0.0, 0.0), reuse, 10.0)
    used = [features for _, features in policy.acted_on]
    assert used == [1 + k // reuse for k in range(len(used))]
    assert tally.held == 0 and len(used) in (19, 20)  # of the 1.9 s that there are
    assert max(tally.ages_s) <= (reuse - 1) * 0.1 + 1 / 30 + 1e-9


@pytest.mark.parametrize(("latency_s", "reuse"), [(0.1, 1), (0.381, 1), (0.381, 4), (0.2, 8)])
def test_with_latency_features_are_those_that_are_ready(
    short: VirtualRig, latency_s: float, reuse: int
) -> None:
    short.reset(1)
    policy = Spying(short)
    tally = run_dual_rate(short, policy, Latencies(latency_s, 0.005), reuse, 10.0)
    # Nothing is there before the first pass is over; from then on something always is.
    assert tally.held == math.ceil(latency_s / 0.1 - 1e-6)
    first_use = {feature: at for at, feature in reversed(policy.acted_on)}
    uses = [sum(f == feature for _, f in policy.acted_on) for feature in sorted(first_use)]
    assert all(count >= reuse for count in uses[:-1])
    # A pass is of pictures of its start, and waits for its first use for a period at most.
    most = latency_s + 1 / 30 + 0.1 + (max(uses[:-1], default=1) - 1) * 0.1
    assert latency_s <= min(tally.ages_s) and max(tally.ages_s[reuse:]) <= most


def test_synchronous_looks_when_it_has_done_all_rows(short: VirtualRig) -> None:
    short.reset(1)
    policy = Spying(short)
    tally = run_chunks(short, policy, Latencies(0.2, 0.0), Queueing(4, 0.0))
    # 0.2 s of thinking, then 0.4 s of motion, and so on for the 1.9 s that there are.
    assert np.allclose(np.diff(policy.encoded_at), 0.6, atol=0.021)
    assert tally.held / tally.ticks == pytest.approx(0.4, abs=0.06)


def test_asynchronous_looks_at_half_a_chunk_and_never_stands(short: VirtualRig) -> None:
    short.reset(1)
    policy = Spying(short)
    tally = run_chunks(short, policy, Latencies(0.1, 0.0), Queueing(None, 0.5))
    first, second = policy.encoded_at[:2]
    # 0.1 s until there is a chunk of 1.6 s; half of it is left 0.8 s later.
    assert second - first == pytest.approx(0.9, abs=0.03)
    assert tally.held <= 11


class GuidedOracle(FlowPolicy):
    """What the oracle plans, after the rows that are frozen; writes down what was under way."""

    def __init__(self, oracle: OraclePolicy) -> None:
        self._oracle = oracle
        self._before: ActionChunk | None = None
        self.under_way: list[UnderWay | None] = []
        self.seeds: list[int] = []

    @property
    def spec(self) -> PolicySpec:
        return self._oracle.spec

    def reseed(self, seed: int) -> None:
        self.seeds.append(seed)

    def encode(self, images, task):  # type: ignore[no-untyped-def]
        return self._oracle.encode(images, task)

    def act(self, features, sensor, robot, previous=None, *, under_way=None, **_):  # type: ignore[no-untyped-def]
        chunk = self._oracle.act(features, sensor, robot, self._before)
        self.under_way.append(under_way)
        self._before = chunk
        if under_way is None:
            return chunk
        rows = chunk.actions.copy()
        rows[: under_way.frozen, :6] = under_way.rows_deg[: under_way.frozen]
        joints = np.append(np.array(robot.joints, np.float32), 0.0)
        return ActionChunk(rows, rows - joints)


@pytest.mark.parametrize(("latency_ms", "frozen"), [(0.0, 1), (195.0, 2), (381.0, 4)])
def test_real_time_chunking_freezes_what_is_executed_meanwhile(
    short: VirtualRig, latency_ms: float, frozen: int
) -> None:
    policy = GuidedOracle(OraclePolicy(short.rig))
    row = run_episode(short, policy, "rtc", latency_ms, 11)
    assert policy.seeds == [11]
    assert policy.under_way[0] is None
    later = [under_way for under_way in policy.under_way[1:] if under_way is not None]
    assert len(later) == len(policy.under_way) - 1 >= 3
    assert {under_way.frozen for under_way in later} == {frozen}
    # It stands until there is a chunk, and then no more.
    thought_s = latency_ms / 1e3 + 0.005
    assert row.held * 1.9 == pytest.approx(thought_s, abs=0.03)
    # The next inference begins when the one before is there, a row after it at the soonest.
    assert row.encoded == pytest.approx(1.9 / max(thought_s, 0.1), abs=2)
    assert row.encoded == row.acted == len(policy.under_way)


def test_real_time_chunking_waits_for_so_many_rows(short: VirtualRig) -> None:
    policy = GuidedOracle(OraclePolicy(short.rig))
    often = run_episode(short, policy, "rtc", 100.0, 11)
    seldom = run_episode(short, policy, "rtc-8", 100.0, 11)
    assert often.encoded > 10
    assert seldom.encoded == 3  # at 0, 0.8 and 1.6 s of 1.9
    assert seldom.age_ms > often.age_ms + 200


def test_real_time_chunking_does_the_task_without_latency(whole: VirtualRig) -> None:
    row = run_episode(whole, GuidedOracle(OraclePolicy(whole.rig)), "rtc", 0.0, 11)
    assert row.success, row


def test_real_time_chunking_needs_a_head_that_can_be_guided(
    tmp_path: Path, short: VirtualRig, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--policy", "oracle", "--out", str(tmp_path), "--limit-s", "1", "--workers", "1"]
    with pytest.raises(SystemExit) as leaving:
        study_latency.main([*options, "--methods", "rtc", "--episodes", "1"])
    assert leaving.value.code == 2
    assert "train a flow head" in capsys.readouterr().err


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_study_from_the_command_line(
    tmp_path: Path, short: VirtualRig, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--policy", "oracle", "--out", str(tmp_path), "--limit-s", "1", "--workers", "1"]
    base += ["--methods", "sync", "dual-2", "--latencies-ms", "0", "200"]
    assert study_latency.main([*base, "--episodes", "1"]) == 0
    assert len(_rows(tmp_path / "episodes.csv")) == 4
    assert study_latency.main([*base, "--episodes", "2"]) == 0
    rows = _rows(tmp_path / "episodes.csv")
    assert len({(row["method"], row["latency_ms"], row["seed"]) for row in rows}) == len(rows) == 8
    assert "4 of 8 episodes are there already" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().count("\n") == 6
    for name in ("success.png", "error.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[0] > 400 and picture.std() > 10
    with pytest.raises(SystemExit) as leaving:
        study_latency.main([*base, "--act-ms", "7"])
    assert leaving.value.code == 2
    assert "results of another study (act_ms)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "dual-0"], "no method 'dual-0'"),
        (["--latencies-ms", "-1"], "latencies are from 0"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--limit-s", "0"], "--limit-s must be above 0"),
    ],
)
def test_bad_options_end_with_a_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        study_latency.main(["--policy", "oracle", *options])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_policy_that_cannot_be_loaded_ends_with_a_line(
    tmp_path: Path, short: VirtualRig, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        options = ["--policy", str(tmp_path / name), "--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as leaving:
            study_latency.main([*options, "--workers", "1"])
        assert leaving.value.code == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error and "Traceback" not in error
