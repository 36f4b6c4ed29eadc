"""The receiver's small parts: views, histogram, mailbox, update clock, lines, options, results."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import cli
from common.clock import Ticker
from common.wire import RobotState
from receiver import control, lines
from receiver.actions import ActionRecord
from receiver.features import FeatureUpdate, UpdateClock
from receiver.folders import SessionFolders
from receiver.histogram import Histogram
from receiver.options import RIG_VIEWS, Limits, ReceiverOptions, StaleAfter
from receiver.results import ResultsWriter
from receiver.threads import Latest, Worker
from receiver.views import view_of

VIEWS = tuple(f"View{n}" for n in range(1, 6))


@pytest.mark.parametrize(
    ("camera", "view"),
    [
        ("ZED_41182735_left", "View1"),
        ("ZED_49429257_left", "View2"),
        ("ZED_44377151_left", "View3"),
        ("ZED_49045152_left", "View4"),
        ("ZED_41182735_right", None),
        ("OAK", "View5"),
        ("my-oak-d", "View5"),
        ("View3", "View3"),
        ("View6", None),
        ("ZED_1_left", None),
        ("webcam", None),
    ],
)
def test_cameras_of_the_known_rig(camera: str, view: str | None) -> None:
    assert view_of(camera, RIG_VIEWS, VIEWS) == view


def test_a_full_name_in_the_map_wins() -> None:
    mapping = {"ZED_41182735_right": "View2", "OAK": "View9", "webcam": "View1"}
    assert view_of("ZED_41182735_right", mapping, VIEWS) == "View2"
    assert view_of("webcam", mapping, VIEWS) == "View1"
    assert view_of("OAK", mapping, VIEWS) == "View9"  # though the policy has no such view


def test_a_view_of_the_map_is_one_though_the_policy_does_not_use_it() -> None:
    assert view_of("View1", RIG_VIEWS, ("View3", "View4")) == "View1"
    assert view_of("ZED_41182735_left", RIG_VIEWS, ("View3", "View4")) == "View1"
    assert view_of("View1", {}, ("View3", "View4")) is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(2e-6, 9e3), min_size=1, max_size=300), st.floats(1, 100))
def test_histogram_percentiles_are_right_to_a_percent(values: list[float], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(int(np.ceil(len(values) * percent / 100)) - 1, 0)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0101)
    assert histogram.mean == pytest.approx(float(np.mean(values)))


def test_mailbox_wakes_who_waits() -> None:
    box: Latest[int] = Latest()
    assert box.get() is None
    assert not box.wait_newer(0, 0.01)
    threading.Timer(0.05, box.put, [7]).start()
    assert box.wait_newer(0, 10.0)
    assert (box.get(), box.version) == (7, 1)


def test_a_worker_that_fails_says_so() -> None:
    said: list[str] = []
    worker = Worker("job", lambda: 1 / 0, said.append)  # type: ignore[arg-type,return-value]
    worker.start()
    worker.join(10)
    assert len(said) == 1
    assert "job" in said[0]
    assert "ZeroDivisionError" in said[0]


class TestUpdateClock:
    """Features are to be ready when the old ones have served N actions, and no earlier."""

    def test_starts_so_late_that_the_pass_just_fits(self) -> None:
        grid = Ticker(10.0, start=100.0)
        clock = UpdateClock(grid, reuse=4)
        clock.finished(0.25, ready_at=100.23)  # first used by the tick at 100.3
        # They serve 100.3, .4, .5, .6; the next ones are due at 100.7 and take 0.25 s.
        assert clock.start_at() == pytest.approx(100.7 - 0.25, abs=0.02)
        assert clock.start_at() < 100.7 - 0.25

    def test_a_pass_that_takes_longer_than_its_uses_runs_back_to_back(self) -> None:
        clock = UpdateClock(Ticker(10.0, start=100.0), reuse=1)
        clock.finished(0.4, ready_at=100.5)
        assert clock.start_at() <= 100.5

    def test_the_first_pass_starts_at_once(self) -> None:
        assert UpdateClock(Ticker(10.0), reuse=4).start_at() <= time.monotonic()


def test_lines_are_those_that_log_readers_know() -> None:
    assert lines.vl_update(5, 0.385) == "[VL Update #5] Completed in 385ms"
    assert lines.action(42, 2, 4, [0.123, -0.045, 0.089, 9.0], 0.0243, 65, 65) == (
        "[ACTION #42] VL_reuse=2/4 | Actions[0]: [0.123, -0.045, 0.089, ...] | Time: 24.3ms"
        " | Sensor: 65/65"
    )
    assert lines.waiting(False, 0, 5, 65, 65, None) == (
        "[WAIT] VL Features: False | Images: False (0/5) | Sensor: True (65/65)"
    )
    block = lines.status(
        updates=25,
        vl_mean_s=0.381,
        actions=100,
        action_mean_s=0.0232,
        frames={"View1": 3000, "View2": 3000},
        samples=65,
        window=65,
        joints=[45.23, 0, 0, 0, 0, 0],
        pose=[123.45, 0, 0, 0, 0, 0],
    )
    assert block[1:] == [
        "VL Updates: 25 | VL avg: 381ms",
        "Actions: 100 | Action avg: 23.2ms",
        "Images recv: View1:3000, View2:3000",
        "Sensor buffer: 65/65",
        "Robot: J1=45.23°, Px=123.45mm",
    ]
    assert block[0].startswith("--- Status (")
    joints = lines.guarding("joint_delta", Limits(), StaleAfter(), ("emergency_stop", "error"))
    assert joints == [
        "Box of the tool: x -330 to 330, y -330 to 330, z 0 to 500 mm; "
        "the tool: 0, 0, 0 mm from the flange",
        "Joint ranges: -175 to 175, -70 to 90, -135 to 70, -170 to 170, -115 to 115, "
        "-36000 to 36000 °",
        "Speed limits: joints 45, 45, 45, 90, 90, 90 °/s, 5 ° a row",
        "Force limit: 3 N",
        "Stale after: view 2 s, sensor 0.5 s, robot 0.5 s, features 2 s",
        "Latched holds: emergency_stop, error",
    ]
    pose = lines.guarding("pose_delta", Limits(force_n=2.5), StaleAfter(), ())
    assert pose[0] == "Box of the reported pose: x -330 to 330, y -330 to 330, z 0 to 500 mm"
    assert pose[1] == "Speed limits: 100 mm/s along each axis, 90 °/s of each angle"
    assert (pose[2], pose[-1]) == ("Force limit: 2.5 N", "Latched holds: none")
    bare = lines.guarding("joint_position", Limits(arm="none"), StaleAfter(), ())
    assert bare[0] == "Box of the tool: none (limits.arm)"
    assert lines.recording(True, 5 << 20, 0, "") == "Recording: on | 5.0 MB | dropped: 0"
    assert lines.recording(False, 0, 3, "full") == "Recording: stopped: full | 0.0 MB | dropped: 3"


class TestOptions:
    def test_yaml_fills_the_same_options_and_the_command_line_wins(self, tmp_path: Path) -> None:
        config = tmp_path / "rig.yaml"
        config.write_text(
            "checkpoint: /models/a\nvl-reuse: 8\naction_hz: 20\nstale_after: {view_s: 1}\n"
            "limits:\n  force_n: 2.5\n  joint_speed_deg_s: [1, 2, 3, 4, 5, 6]\n"
            "views: {'123': View1}\nports: {camera: 7000}\n"
        )
        arguments = ["--config", str(config), "--vl-reuse", "2"]
        options = cli.parse(ReceiverOptions, arguments)
        assert options.checkpoint == "/models/a"
        assert options.vl_reuse == 2
        assert options.action_hz == 20.0
        assert options.stale_after.view_s == 1.0
        assert options.stale_after.robot_s == 0.5
        assert options.limits.joint_speed_deg_s == (1, 2, 3, 4, 5, 6)
        assert options.limits.force_n == 2.5
        assert options.views == {"123": "View1"}
        assert options.ports.camera == 7000

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("vl_reus: 3", "no option 'vl_reus'"),
            ("vl_reuse: three", "int expected"),
            ("limits: {force_n: hard}", "limits: force_n: float expected"),
            ("limits: {joint_min_deg: [1, 2]}", "list of 6 values"),
            ("limits: 3", "a map is expected"),
            ("dtype: int4", "'int4' is none of"),
            ("- a list", "a map of option names"),
            ("a: [", "not YAML"),
            ("vl_reuse: 0", "--vl-reuse must be at least 1"),
            ("save_data: 1", "bool expected"),
        ],
    )
    def test_a_bad_file_is_one_line_and_exit_code_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
    ) -> None:
        config = tmp_path / "rig.yaml"
        config.write_text(text)
        with pytest.raises(SystemExit) as leaving:
            cli.parse(ReceiverOptions, ["--config", str(config), "--checkpoint", "x"])
        assert leaving.value.code == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "--checkpoint"),
            (["--checkpoint", "x", "--vl-reus", "4"], "--vl-reus"),
            (["--checkpoint", "x", "--vl-reuse", "x"], "--vl-reuse"),
            (["--checkpoint", "x", "--vl-reuse", "0"], "at least 1"),
            (["--checkpoint", "x", "--action-hz", "0"], "above 0"),
            (["--checkpoint", "x", "--duration", "-1"], "--duration"),
            (["--checkpoint", "x", "--duration", "inf"], "--duration"),
            (["--checkpoint", "x", "--sensor-hz", "inf"], "--sensor-hz"),
            (["--checkpoint", "x", "--rerun-serve", "70000"], "--rerun-serve must be from 1"),
            (["--checkpoint", "x", "--config", "/no/such.yaml"], "cannot be read"),
        ],
    )
    def test_a_bad_command_line_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        with pytest.raises(SystemExit) as leaving:
            cli.parse(ReceiverOptions, arguments)
        assert leaving.value.code == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("bad", [".nan", ".inf", "-.inf"])
    @pytest.mark.parametrize(
        ("group", "name", "place", "count"),
        [
            (group, one.name, place, count)
            for group, made in (("stale_after", StaleAfter()), ("limits", Limits()))
            for one in fields(made)
            if one.name != "arm"
            for count in [np.size(getattr(made, one.name))]
            for place in range(count)
        ],
    )
    def test_no_number_that_guards_may_be_nan_or_infinite(
        self, tmp_path: Path, group: str, name: str, place: int, count: int, bad: str
    ) -> None:
        made = StaleAfter() if group == "stale_after" else Limits()
        values = [str(float(v)) for v in np.atleast_1d(getattr(made, name))]
        values[place] = bad
        text = f"[{', '.join(values)}]" if count > 1 else bad
        config = tmp_path / "rig.yaml"
        config.write_text(f"{group}: {{{name}: {text}}}")
        with pytest.raises(cli.ConfigError, match=rf"{group}: {name} must be") as refused:
            cli.read(ReceiverOptions, ["--config", str(config), "--checkpoint", "x"])
        assert "\n" not in str(refused.value)

    def test_several_nans_are_no_way_around_either(self, tmp_path: Path) -> None:
        config = tmp_path / "rig.yaml"
        config.write_text("stale_after: {sensor_s: .nan, robot_s: .nan, features_s: .nan}")
        with pytest.raises(cli.ConfigError, match="stale_after: sensor_s must be"):
            cli.read(ReceiverOptions, ["--config", str(config), "--checkpoint", "x"])

    @pytest.mark.parametrize("port", [-1, 0, 65_536, 99_999])
    @pytest.mark.parametrize("name", ["camera", "robot", "sensor", "action", "time"])
    def test_a_number_that_is_no_port_is_refused(self, name: str, port: int) -> None:
        arguments = ["--checkpoint", "x", f"--ports.{name}", str(port)]
        if (name, port) == ("time", 0):
            assert cli.read(ReceiverOptions, arguments).ports.time == 0
            return
        with pytest.raises(cli.ConfigError, match=rf"--ports\.{name} must be from \d to 65535"):
            cli.read(ReceiverOptions, arguments)


def record(number: int, episode: int = 1) -> ActionRecord:
    update = FeatureUpdate(3, episode, None, {"View1": 1.0}, 1.1, 1.3, "task")
    rows = np.full((8, 7), number, np.float32)
    return ActionRecord(
        episode=episode,
        episode_at=1.7e9,
        number=number,
        at=1.7e9 + number,
        deadline=1.7e9,
        lateness_s=0.001,
        inference_s=0.02,
        actions=rows,
        proposed=rows,
        delta=rows,
        cut=frozenset({"workspace"}),
        update=update,
        feature_use=1,
        feature_age_s=0.2,
        sensor_samples=65,
        force_n=0.5,
        robot=RobotState(1.0, 2.0, 0.0, (1.0,) * 6, (2.0,) * 6) if number else None,
    )


class TestResults:
    def test_the_file_is_a_whole_list_at_every_moment(self, tmp_path: Path) -> None:
        writer = ResultsWriter(SessionFolders(tmp_path))
        for size in (1, 3, 2):
            for _ in range(size):
                writer.record(record(writer._queue.qsize()))
            writer._write_queued()
            (path,) = tmp_path.glob("async_inference_*/inference_results_*.json")
            entries = json.loads(path.read_text())
        assert len(entries) == 6
        first = entries[0]
        keys = ["timestamp", "actions", "delta", "inference_time", "vl_update_number"]
        assert list(first)[:6] == [*keys, "robot_state"]
        assert np.shape(first["actions"]) == np.shape(first["delta"]) == (8, 7)
        assert first["robot_state"] is None
        assert entries[2]["robot_state"].keys() == {"joints", "pose", "timestamp"}

    def test_each_episode_has_its_own_folder(self, tmp_path: Path) -> None:
        folders = SessionFolders(tmp_path)
        writer = ResultsWriter(folders)
        for episode, number in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2)):
            writer.record(record(number, episode))
        stop = threading.Event()
        stop.set()
        writer.run(stop)
        counts = [len(json.loads(next(f.glob("*.json")).read_text())) for f in folders.made]
        assert counts == [2, 1, 2]
        assert len({f.name for f in folders.made}) == 3

    def test_a_full_disk_costs_records_and_never_an_exception(self, tmp_path: Path) -> None:
        folders = SessionFolders(tmp_path / "out")
        writer = ResultsWriter(folders)
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_text("in the way")
        writer.record(record(1))
        writer._write_queued()
        assert writer.lost == 1
        (tmp_path / "out").unlink()
        writer.record(record(2))
        writer._write_queued()
        assert writer.lost == 1
        assert len(folders.made) == 1

    def test_a_queue_that_is_full_drops_and_counts(self, tmp_path: Path) -> None:
        writer = ResultsWriter(SessionFolders(tmp_path))
        size = writer._queue.maxsize
        for number in range(size + 5):
            writer.record(record(number))
        assert writer.lost == 5


class Switched:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("on")

    def stop(self) -> None:
        self.told.append("off")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("record on", ["on"]),
        ("record off\n", ["off"]),
        ("record  on ", ["on"]),
        ("record", []),
        ("record maybe", []),
        ("records on", []),
    ],
)
def test_typed_lines_switch_the_recording(line: str, told: list[str]) -> None:
    switch = Switched()
    control._obey(line, control.Heard(Latest(), Latest(), Latest(), switch))
    assert switch.told == told


@pytest.mark.parametrize(
    ("line", "task"),
    [
        ("task Grasp it\n", "Grasp it"),
        ("task\n", None),
        ("x y\n", None),
        ("task " + "a" * 3000, None),
    ],
)
def test_typed_lines_change_the_task(line: str, task: str | None) -> None:
    box: Latest[str] = Latest()
    control._obey(line, control.Heard(box, Latest(), Latest(), Switched()))
    assert box.get() == task


@pytest.mark.parametrize(
    ("line", "resumed"),
    [("resume\n", 1), ("  resume ", 1), ("resume now", 0), ("Resume", 0), ("task resume", 0)],
)
def test_only_the_word_itself_releases_a_latched_hold(line: str, resumed: int) -> None:
    box: Latest[str] = Latest()
    control._obey(line, control.Heard(Latest(), Latest(), box, Switched()))
    assert box.version == resumed
