"""The receiver as a program, with the real senders as programs, over real sockets."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from common import endpoints, wire
from receiver import main as receiver_program
from tests.support import Child, free_ports

Start = Callable[..., Child]


class Setup:
    """A receiver and its three senders on ports of their own."""

    def __init__(self, start: Start, checkpoint: Path, folder: Path) -> None:
        self.start, self.checkpoint, self.folder = start, checkpoint, folder
        self.camera, self.robot, self.sensor, self.action, self.time = free_ports(5)
        self.summary_path = folder / "summary.json"

    def arguments(self, *extra: str) -> list[str]:
        named = ("camera", "robot", "sensor", "action", "time")
        ports = [f"--ports.{name}={getattr(self, name)}" for name in named]
        paths = ["--output-dir", str(self.folder), "--summary", str(self.summary_path)]
        return ["--checkpoint", str(self.checkpoint), *paths, *ports, *extra]

    def receiver(self, *extra: str) -> Child:
        return self.start("receiver/main.py", *self.arguments(*extra))

    def sender(self, name: str) -> Child:
        clock = ["--time-port", str(self.time)]
        if name == "robot":
            logs = ["--output-dir", str(self.folder / "log"), "--action-port", str(self.action)]
            given = ["--robot", "on", "--accept-actions", "--port", str(self.robot), *logs, *clock]
            return self.start("senders/robot_sender.py", "--driver", "synthetic", *given)
        if name == "cameras":
            given = ["--port", str(self.camera), "--width", "320", "--height", "180", *clock]
            return self.start("senders/jetson_camera_sender.py", "--driver", "synthetic", *given)
        given = ["--port", str(self.sensor), *clock]
        return self.start("senders/force_sensor_sender.py", "--driver", "synthetic", *given)

    def summary(self) -> dict:
        return json.loads(self.summary_path.read_text())


@pytest.fixture
def setup(program: Start, tiny_checkpoint: Path, tmp_path: Path) -> Setup:
    return Setup(program, tiny_checkpoint, tmp_path)


SUMMARY_KEYS = [
    "duration_s",
    "vl_updates",
    "vl_ms_mean",
    "vl_hz",
    "actions",
    "action_hz",
    "action_ms_p50",
    "action_ms_p99",
    "action_lateness_ms_p50",
    "action_lateness_ms_p99",
    "deadline_misses",
    "feature_age_ms_p50",
    "feature_age_ms_p99",
    "frames",
    "frames_dropped",
    "robot_hz",
    "sensor_hz",
    "sensor_samples",
    "sensor_lost",
    "malformed",
    "clock_offset_ms",
    "holds",
    "cpu_s",
    "peak_rss_mb",
    "device",
    "policy",
]

IN_ONE = ("--slow-loop", "thread")
"""For tests to which it is all the same: one process that loads PyTorch, and not two."""

SILENT = {"cameras": r"View\d silent", "robot": "robot silent", "sensor": "sensor silent"}
LIMIT_S = {"cameras": 2.0, "robot": 0.5, "sensor": 0.5}


@pytest.mark.parametrize(
    "order",
    [
        ("sensor", "robot", "cameras"),
        pytest.param(("cameras", "sensor", "robot"), marks=pytest.mark.slow),
    ],
)
def test_senders_come_go_and_come_back_in_any_order(setup: Setup, order: tuple[str, ...]) -> None:
    receiver = setup.receiver()
    senders = {}
    missing = {"sensor": r"Sensor: False \(0/65\)", "cameras": r"Images: False \(0/5\)"}
    for name in order:
        before = len(receiver.lines)
        receiver.wait_for(missing.get(name, "Robot: False"), after=before)
        senders[name] = setup.sender(name)
    receiver.wait_for("inference started")
    receiver.wait_for(r"\[ACTION #5\] VL_reuse=\d/4 \| Actions\[0\]: \[.*\] \| Time: .*ms")
    for name in order:
        before = len(receiver.lines)
        killed_at = time.monotonic()
        senders[name].kill()
        said_at, _ = receiver.wait_for(rf"\[HOLD\] {SILENT[name]}", after=before)
        # The limit, a tick, what was still under way, and some seconds for a busy machine.
        assert said_at - killed_at <= LIMIT_S[name] + 0.1 + 5.0
        before = len(receiver.lines)
        senders[name] = setup.sender(name)
        receiver.wait_for(r"\[HOLD\] over", after=before)
        receiver.wait_for(r"\[ACTION #", after=before)
    assert receiver.stop() == 0
    holds = setup.summary()["holds"]
    assert {"robot silent", "sensor silent"} <= set(holds)
    assert any(reason.endswith("silent") and reason.startswith("View") for reason in holds)
    assert setup.summary()["malformed"] == {}


def test_a_run_ends_by_itself_with_its_files_and_its_summary(setup: Setup) -> None:
    senders = [setup.sender(name) for name in ("robot", "cameras", "sensor")]
    receiver = setup.receiver("--duration", "6", "--task", "Touch the port")
    context = zmq.Context()
    actions = context.socket(zmq.SUB)
    actions.subscribe(endpoints.ACTION.topic)
    actions.connect(f"tcp://127.0.0.1:{setup.action}")
    receiver.wait_for("inference started")
    receiver.tell("task Leave the port")
    assert receiver.end(60) == 0, receiver.text
    published = []
    while actions.poll(200):
        published.append(wire.decode_action(actions.recv_multipart()))
    context.destroy(linger=0)

    summary = setup.summary()
    assert set(SUMMARY_KEYS) <= set(summary)
    assert summary["duration_s"] == pytest.approx(6.0, abs=3.0)
    assert summary["action_hz"] == pytest.approx(10.0, rel=0.3)
    assert summary["robot_hz"] == pytest.approx(100, rel=0.3)
    assert summary["sensor_hz"] == pytest.approx(650, rel=0.2)
    assert min(summary["frames"].values()) > 0
    assert summary["task"] == "Leave the port"
    assert summary["vl_hz"] >= 0.3
    assert summary["peak_rss_mb"] > 0
    assert 0 < summary["feature_age_ms_p50"] < 2000

    entries = [
        entry
        for folder in summary["results"]
        for path in Path(folder).glob("inference_results_*.json")
        for entry in json.loads(path.read_text())
    ]
    assert len(entries) == summary["actions"] >= 30
    assert {len(e["actions"]) for e in entries} == {8}
    assert {len(row) for e in entries for row in e["actions"]} == {7}
    assert entries[0]["task"] == "Touch the port"
    assert entries[-1]["task"] == "Leave the port"
    deadlines = [e["deadline"] for e in entries]
    grid = [(d - deadlines[0]) * 10 for d in deadlines]
    assert all(abs(k - round(k)) < 1e-3 for k in grid), "ticks left the grid"

    moving = [a for a in published if not a.hold]
    assert moving
    assert [a.seq for a in published] == sorted({a.seq for a in published})
    assert published[-1].hold
    assert published[-1].reason == "stopped"
    told = ("Device: cpu", "VL reuse: 4", "Fusion strategy: concat", "Save data: False")
    for line in (*told, "Force limit: 3 N", "Latched holds: emergency_stop, error"):
        assert line in receiver.text
    assert "Sensor Clock Offset Calibrated: " in receiver.text
    assert "Slow loop: in a process of its own" in receiver.text
    # One machine, one clock: what the exchange leaves is far below what one way could tell.
    assert summary["time_exchanges"] >= 3
    assert "--- Status (" in receiver.text
    for sender in senders:
        assert sender.stop() == 0


def test_episodes_have_their_own_folders_and_counters(setup: Setup) -> None:
    senders = {name: setup.sender(name) for name in ("robot", "cameras", "sensor")}
    receiver = setup.receiver(*IN_ONE)
    receiver.wait_for(r"\[ACTION #8\]")
    before = len(receiver.lines)
    assert senders["robot"].stop() == 0  # says episode_end as it leaves
    receiver.wait_for(r"\[HOLD\] (episode ended|robot silent)", after=before)
    before = len(receiver.lines)
    setup.sender("robot")
    receiver.wait_for(r"\[ACTION #1\] ", after=before)
    receiver.wait_for(r"\[VL Update #1\] ", after=before)
    receiver.wait_for(r"\[ACTION #5\] ", after=before)
    assert receiver.stop() == 0
    summary = setup.summary()
    assert summary["episodes"] == 2
    assert len(summary["results"]) == len(set(summary["results"])) == 2
    for folder in summary["results"]:
        (path,) = Path(folder).glob("inference_results_*.json")
        entries = json.loads(path.read_text())
        assert [e["action_number"] for e in entries] == list(range(1, len(entries) + 1))


def test_results_survive_sigkill(setup: Setup) -> None:
    for name in ("robot", "cameras", "sensor"):
        setup.sender(name)
    receiver = setup.receiver(*IN_ONE)
    receiver.wait_for(r"\[ACTION #20\]")
    receiver.wait_for(r"\[ACTION #31\]")
    receiver.kill()
    (path,) = setup.folder.glob("async_inference_*/inference_results_*.json")
    # A second of actions is the most that may be lost.
    assert len(json.loads(path.read_text())) >= 20


def test_without_a_robot_inference_runs_and_every_action_is_a_hold(setup: Setup) -> None:
    for name in ("cameras", "sensor"):
        setup.sender(name)
    receiver = setup.receiver("--no-robot-required", "--duration", "3", *IN_ONE)
    context = zmq.Context()
    actions = context.socket(zmq.SUB)
    actions.subscribe(b"")
    actions.connect(f"tcp://127.0.0.1:{setup.action}")
    assert receiver.end(90) == 0, receiver.text
    published = []
    while actions.poll(200):
        published.append(wire.decode_action(actions.recv_multipart()))
    context.destroy(linger=0)
    assert published
    assert all(action.hold for action in published)
    summary = setup.summary()
    assert summary["actions"] >= 10
    assert summary["holds"] == {"no robot state to check the limits against": summary["actions"]}
    assert "[HOLD] no robot state" in receiver.text


def test_sigterm_stops_cleanly_before_anything_came(setup: Setup) -> None:
    receiver = setup.receiver(*IN_ONE)
    receiver.wait_for(r"\[WAIT\] VL Features: False \| Images: False \(0/5\)")
    assert receiver.stop(signal.SIGTERM) == 0
    assert setup.summary()["actions"] == 0


def test_an_unreadable_checkpoint_is_one_line_and_code_2(setup: Setup) -> None:
    setup.checkpoint = setup.folder / "policy.pt"
    setup.checkpoint.write_bytes(b"not a checkpoint")
    receiver = setup.receiver()
    assert receiver.end() == 2
    assert "policy.pt" in receiver.text
    assert receiver.text.count("\n") == 0


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"\x80\x04."])
def test_whatever_is_wrong_with_a_checkpoint_is_one_line(
    setup: Setup,
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup.checkpoint = setup.folder / "policy.pt"
    if content is not None:
        setup.checkpoint.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["main.py", *setup.arguments(*IN_ONE)])
    with pytest.raises(SystemExit) as caught:
        receiver_program.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "policy.pt" in said
    assert said.count("\n") == 1


def test_a_port_in_use_is_one_line_and_code_1(setup: Setup) -> None:
    context = zmq.Context()
    taken = context.socket(zmq.PULL)
    taken.bind(f"tcp://*:{setup.camera}")
    receiver = setup.receiver()
    assert receiver.end() == 1
    assert str(setup.camera) in receiver.text
    assert "Traceback" not in receiver.text
    context.destroy(linger=0)


def test_an_output_folder_that_cannot_be_written_is_one_line_and_code_2(setup: Setup) -> None:
    (setup.folder / "file").write_text("")
    setup.folder = setup.folder / "file"
    receiver = setup.receiver()
    assert receiver.end() == 2
    assert "--output-dir" in receiver.text
    assert receiver.text.count("\n") == 0


def test_a_time_port_in_use_leaves_clocks_to_one_way(setup: Setup) -> None:
    context = zmq.Context()
    taken = context.socket(zmq.ROUTER)
    taken.bind(f"tcp://*:{setup.time}")
    for name in ("robot", "cameras", "sensor"):
        setup.sender(name)
    receiver = setup.receiver(*IN_ONE)
    receiver.wait_for("for the time exchange: .*: clocks are estimated one-way")
    receiver.wait_for("^Time: not answering")
    receiver.wait_for(r"\[ACTION #3\]")
    assert receiver.stop() == 0
    context.destroy(linger=0)
