"""The Rerun tap and its viewer process: real sockets, a real child, the .rrd read back."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.wire import CameraFrame, RobotState, SampleBatch
from receiver import rerun_wire
from receiver.actions import ActionRecord
from receiver.features import FeatureUpdate
from receiver.inputs import StoredFrame, StoredState
from receiver.rerun_tap import RerunError, RerunOptions, RerunSetup, RerunTap
from tests.sessions import START, joints_at, picture
from tests.support import Child, free_ports, wait_until

installed = importlib.util.find_spec("rerun_bindings") is not None
needs_rerun = pytest.mark.skipif(not installed, reason="pip install '.[rerun]'")

COLUMNS = ("j1", "j2", "j3", "j4", "j5", "j6", "gripper")
SETUP = RerunSetup(("View1", "View2"), COLUMNS, "joint_position", 64, "tiny on cpu")
JPEG = picture(0, 1, (64, 36))


def stored_frame(at: float, jpeg: bytes = JPEG) -> StoredFrame:
    return StoredFrame(CameraFrame("cam", at, jpeg, 1, at), at, at + 0.01)


def stored_state(at: float) -> StoredState:
    pose = (190.0, 0.0, 308.0, 0.0, 90.0, 0.0)
    return StoredState(RobotState(at, at, 0.0, joints_at(at - START), pose), at, at + 0.002)


def datagram(at: float) -> memoryview:
    times = at + np.arange(10) / 650
    alines = np.random.default_rng(1).random((10, 64), np.float32)
    batch = SampleBatch(times, np.full(10, times[-1]), np.full(10, 0.5, np.float32), alines)
    return memoryview(wire.encode_samples(batch))


def record(at: float, number: int, task: str = "touch the port") -> ActionRecord:
    rows = np.tile(np.float32((*joints_at(at - START), 0.5)), (8, 1))
    rows[:, 0] += np.arange(8, dtype=np.float32)
    update = FeatureUpdate(1, 1, None, {"View1": at - 0.5}, at - 0.4, at - 0.1, task)
    return ActionRecord(
        episode=1,
        episode_at=START,
        number=number,
        at=at,
        deadline=at,
        lateness_s=0.0001,
        inference_s=0.012,
        actions=rows,
        proposed=rows,
        delta=rows,
        cut=frozenset({"speed"}) if number == 1 else frozenset(),
        update=update,
        feature_use=1,
        feature_age_s=0.5,
        sensor_samples=65,
        force_n=0.5,
        robot=None,
    )


Rows = dict[str, list[dict[str, Any]]]


def rows_in(path: Path) -> Rows:
    """Every entity's rows, read with Rerun's own reader."""
    from rerun.chunk import RrdReader

    found: Rows = defaultdict(list)
    for chunk in RrdReader(path).stream():
        batch = chunk.to_record_batch()
        # Times in nanoseconds are more than a datetime holds.
        named = {n: c for n, c in zip(batch.schema.names, batch.columns, strict=True) if ":" in n}
        columns = {name: column.to_pylist() for name, column in named.items()}
        found[chunk.entity_path] += [
            {name: column[k] for name, column in columns.items()} for k in range(batch.num_rows)
        ]
    return found


def values(rows: Rows, entity: str, component: str) -> list[Any]:
    return [row[component] for row in rows[entity] if row.get(component) is not None]


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[tuple[RerunTap, Path]]:
    path = tmp_path / "run.rrd"
    tap = RerunTap(RerunOptions(save=path), SETUP)
    tap.start()
    yield tap, path
    tap.close()


@needs_rerun
def test_what_the_tap_is_shown_is_in_the_file(saving: tuple[RerunTap, Path]) -> None:
    tap, path = saving
    logger = logging.getLogger("receiver.of_a_test")
    logger.addHandler(tap.handler)
    jpegs = {
        view: [picture(n, k, (64, 36)) for k in range(3)] for n, view in enumerate(SETUP.views)
    }
    for k in range(3):
        for view in SETUP.views:
            tap._due.clear()  # not the clock's matter here
            tap.frame(view, stored_frame(START + k, jpegs[view][k]))
    for k in range(50):
        tap.state(stored_state(START + k / 100))
    for k in range(20):
        tap.samples(datagram(START + k / 65), START + (k + 1) / 65)
    for k in range(5):
        tap.action(record(START + k / 10, k + 1))
    logger.warning("[HOLD] %s", "View1 silent")
    logger.warning("[ACTION #1] is shown as curves")
    tap.close()
    rows = rows_in(path)
    for view in SETUP.views:
        blobs = values(rows, f"/views/{view}", "EncodedImage:blob")
        assert [bytes(blob[0]) for blob in blobs] == jpegs[view]
    joints = values(rows, "/robot/joints", "Scalars:scalars")
    expected = [stored_state(START + k / 100).state.joints for k in range(50)]
    np.testing.assert_array_equal(joints, expected)
    forces = values(rows, "/sensor/force", "Scalars:scalars")
    assert forces == [[0.5]] * 200
    assert values(rows, "/sensor/ascans", "Image:format")[0][0]["width"] == 512
    assert values(rows, "/timing/inference_ms", "Scalars:scalars") == [[12.0]] * 5
    assert values(rows, "/timing/feature_age_ms", "Scalars:scalars") == [[500.0]] * 5
    np.testing.assert_allclose(
        values(rows, "/action/first_row", "Scalars:scalars")[0], [*joints_at(0.0), 0.5], rtol=1e-6
    )
    labels = values(rows, "/action/chunk/legend", "Points2D:labels")
    assert len(labels) == 5 and labels[0][:2] == ["j1 +7.00", "j2 +0.00"]
    assert len(values(rows, "/age_ms/View1", "Scalars:scalars")) == 5
    texts = values(rows, "/log", "TextLog:text")
    assert ["[HOLD] View1 silent"] in texts and ["limits: speed"] in texts and len(texts) == 2
    tasks = values(rows, "/task", "TextDocument:text")
    assert len(tasks) == 1 and "touch the port" in tasks[0][0]
    assert tap.failed == 0


@needs_rerun
def test_a_viewer_elsewhere_can_connect(tmp_path: Path) -> None:
    import rerun_cli

    served, own = free_ports(2)
    path = tmp_path / "seen.rrd"
    tap = RerunTap(RerunOptions(serve=served), SETUP)
    tap.start()
    url = f"rerun+http://127.0.0.1:{served}/proxy"
    # Rerun's own program, which writes what a viewer would show.
    viewer = subprocess.Popen(
        [Path(rerun_cli.__file__).with_name("rerun"), url, "--save", path, "--port", str(own)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for k in range(10):
            tap.state(stored_state(START + k))
        # It has the layout and the first curves once there is more than a file's head.
        wait_until(lambda: path.exists() and path.stat().st_size > 10_000, "the viewer's file")
        tap.close()
        assert viewer.wait(30) == 0
    finally:
        viewer.kill()
        tap.close()
    assert len(values(rows_in(path), "/robot/joints", "Scalars:scalars")) == 10


@needs_rerun
def test_pictures_are_thinned_to_ten_a_second(saving: tuple[RerunTap, Path]) -> None:
    tap, path = saving
    began = time.monotonic()
    # As fast as it goes, for half a second: far over ten a second.
    while time.monotonic() < began + 0.5:
        tap.frame("View1", stored_frame(START))
    took_s = time.monotonic() - began
    tap.close()
    shown = len(values(rows_in(path), "/views/View1", "EncodedImage:blob"))
    assert 1 <= shown <= took_s * 10 + 2


@needs_rerun
def test_a_viewer_that_hangs_or_is_killed_holds_nothing_up(
    saving: tuple[RerunTap, Path], caplog: pytest.LogCaptureFixture
) -> None:
    tap, _ = saving
    assert tap._process is not None
    sample, big = datagram(START), b"\xff\xd8" + bytes(100_000)

    def feed(what: str) -> None:
        began = time.monotonic()
        for k in range(2000):
            tap._due.clear()
            tap.frame("View1", stored_frame(START, big))
            tap.state(stored_state(START))
            tap.samples(sample, START)
            tap.action(record(START, k))
        # 8000 messages, 200 MB of pictures, and nobody takes them.
        assert time.monotonic() - began < 20, what
        assert all(len(waiting) <= 200 for waiting in tap._waiting.values())
        assert tap.failed == 0, what

    os.kill(tap._process.pid, signal.SIGSTOP)
    feed("the viewer hangs")
    with caplog.at_level(logging.WARNING):
        os.kill(tap._process.pid, signal.SIGKILL)
        wait_until(lambda: "goes on without it" in caplog.text, "the line")
    feed("the viewer is gone")


@needs_rerun
def test_the_viewer_ends_with_a_receiver_that_is_killed(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    path = tmp_path / "run.rrd"
    child = program(
        "-c",
        "import time\n"
        "from pathlib import Path\n"
        "from tests.receiver.test_viewer import *\n"
        f"tap = RerunTap(RerunOptions(save=Path({str(path)!r})), SETUP)\n"
        "tap.start()\n"
        "for k in range(10): tap.state(stored_state(START + k))\n"
        "time.sleep(0.5)\n"
        "print('viewer', tap._process.pid, flush=True)\n"
        "time.sleep(60)\n",
    )
    pid = int(child.wait_for(r"^viewer \d+", 30)[1].split()[1])
    child.kill()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    wait_until(gone, "the viewer's end")
    assert len(values(rows_in(path), "/robot/joints", "Scalars:scalars")) == 10


def test_without_rerun_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RerunError, match=r"pip install '\.\[rerun\]'"):
        RerunTap(RerunOptions(save=Path("x.rrd")), SETUP)


@needs_rerun
@pytest.mark.skipif(sys.platform != "linux", reason="of X11 and Wayland")
def test_without_a_display_one_line_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RerunError, match="--rerun-save"):
        RerunTap(RerunOptions(show=True), SETUP)


@needs_rerun
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"save": Path("/dev/null/run.rrd")}, "(exists|Not a directory)"),
        ({"connect": "nonsense"}, "nonsense"),
        ({"serve": 1 << 20}, "port 1048576"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_at_the_start(
    options: dict[str, Any], said: str
) -> None:
    tap = RerunTap(RerunOptions(**options), SETUP)
    with pytest.raises(RerunError, match=said) as raised:
        tap.start()
    assert "\n" not in str(raised.value)
    assert tap._process is not None and tap._process.poll() is not None
    assert tap._folder is not None and not Path(tap._folder).exists()


def good_messages() -> list[list[bytes]]:
    tidy = [
        rerun_wire.frame_parts("View1", START, START, JPEG),
        rerun_wire.state_parts(START, START, 0.0, joints_at(0.0), (0.0,) * 6),
        rerun_wire.samples_parts(START, datagram(START)),
        rerun_wire.action_parts(START, "t", np.ones((2, 7), np.float32), {"a": 1.0}, {}, ["x"]),
        rerun_wire.line_parts(START, 20, "line"),
    ]
    return [[bytes(part) for part in parts] for parts in tidy]


def test_each_kind_of_message_comes_through() -> None:
    frame, state, samples, action, line = (rerun_wire.decode(parts) for parts in good_messages())
    assert frame == rerun_wire.FrameSeen("View1", START, START, JPEG)
    assert isinstance(state, rerun_wire.StateSeen) and state.joints == joints_at(0.0)
    assert isinstance(samples, rerun_wire.SamplesSeen)
    assert samples.datagram == bytes(datagram(START))
    assert isinstance(action, rerun_wire.ActionSeen)
    assert action.rows.shape == (2, 7) and action.numbers == {"a": 1.0} and action.cut == ("x",)
    assert line == rerun_wire.LineSaid(START, 20, "line")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_broken_messages_raise_value_error_alone(data: st.DataObject) -> None:
    parts = list(data.draw(st.sampled_from(good_messages())))
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, len(parts) - 1))
        how = data.draw(st.sampled_from(["cut", "flip", "drop", "noise"]))
        if how == "cut":
            parts[which] = parts[which][: data.draw(st.integers(0, len(parts[which])))]
        elif how == "flip" and parts[which]:
            at = data.draw(st.integers(0, min(len(parts[which]), 200) - 1))
            flipped = bytearray(parts[which])
            flipped[at] ^= data.draw(st.integers(1, 255))
            parts[which] = bytes(flipped)
        elif how == "drop" and len(parts) > 1:
            del parts[which]
        else:
            parts[which] = data.draw(st.binary(max_size=60))
    try:
        rerun_wire.decode(parts)
    except ValueError:
        pass


@needs_rerun
def test_a_broken_message_is_counted_and_left_out() -> None:
    import rerun as rr

    from receiver.rerun_log import RerunLog

    log = RerunLog(rr.RecordingStream("dualrate-test"), SETUP)
    for parts in good_messages():
        log.take(parts)
    assert log.broken == 0
    log.take([b"d", good_messages()[2][1], b"\x01\0\0\0"])
    log.take([b"?", b""])
    log.take([])
    assert log.broken == 3


@needs_rerun
def test_what_cannot_be_sent_is_counted_and_the_rest_goes_on(
    saving: tuple[RerunTap, Path],
) -> None:
    tap, path = saving
    broken: Any = object()
    tap.action(broken)
    tap.state(stored_state(START))
    tap.frame("View1", stored_frame(START))
    wait_until(lambda: tap.failed == 1, "the broken action")
    tap.action(record(START, 1))
    tap.close()
    rows = rows_in(path)
    assert len(values(rows, "/action/first_row", "Scalars:scalars")) == 1
    assert len(values(rows, "/robot/joints", "Scalars:scalars")) == 1
