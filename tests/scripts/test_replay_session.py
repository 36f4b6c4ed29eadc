"""`scripts/replay_session.py` as a user runs it, against plain sockets that act as the receiver."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from common import wire
from common.session import Session, layout
from scripts.replay_session import batch_of, main, rate_of
from tests.sessions import STAMP, Made, make_older_session, make_session
from tests.support import Child, free_ports, wait_until

ALINE = 24
SHORT = Made(seconds=2.0, aline_length=ALINE)


class Sockets:
    """Plain sockets where the receiver's would be; keeps what came, decoded, and when."""

    def __init__(self) -> None:
        self.robot_port, self.camera_port, self.sensor_port = free_ports(3)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.subscriber = self.context.socket(zmq.SUB)
        self.subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        self.subscriber.setsockopt(zmq.RCVHWM, 0)
        self.subscriber.setsockopt(zmq.RECONNECT_IVL, 20)
        self.subscriber.connect(f"tcp://127.0.0.1:{self.robot_port}")
        self.puller = self.context.socket(zmq.PULL)
        self.puller.setsockopt(zmq.RCVHWM, 0)
        self.puller.bind(f"tcp://127.0.0.1:{self.camera_port}")
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.udp.bind(("127.0.0.1", self.sensor_port))
        self.udp.setblocking(False)
        self.states: list[tuple[float, wire.RobotState]] = []
        self.endings: list[int] = []
        """How many states had come when an episode ended."""
        self.frames: dict[str, list[tuple[float, wire.CameraFrame]]] = {}
        self.batches: list[tuple[float, wire.SampleBatch]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for sock in (self.subscriber, self.puller, self.udp):
            poller.register(sock, zmq.POLLIN)
        while not self.stop.is_set():
            ready = dict(poller.poll(50))
            moment = time.monotonic()
            if self.subscriber in ready:
                self._take_robot(moment)
            if self.puller in ready:
                frame = wire.decode_camera(self.puller.recv_multipart())
                self.frames.setdefault(frame.camera, []).append((moment, frame))
            if self.udp.fileno() in ready:
                datagram = self.udp.recv(1 << 16)
                self.batches.append((moment, wire.decode_samples(datagram, ALINE)))

    def _take_robot(self, moment: float) -> None:
        message = wire.decode_robot(self.subscriber.recv_multipart())
        if isinstance(message, wire.RobotState):
            self.states.append((moment, message))
        elif isinstance(message, wire.EpisodeEnd):
            self.endings.append(len(self.states))

    @property
    def options(self) -> list[str]:
        ports = (self.robot_port, self.camera_port, self.sensor_port)
        named = zip(("robot", "camera", "sensor"), ports, strict=True)
        return [word for name, port in named for word in (f"--{name}-port", str(port))]

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        self.udp.close()
        self.context.destroy(linger=0)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


@pytest.fixture
def replay(program: Callable[..., Child], sockets: Sockets) -> Callable[..., Child]:
    """`replay(session, *options)`: the script, with the sockets' ports."""

    def begin(session: Path, *options: object) -> Child:
        given = [str(option) for option in options]
        return program("scripts/replay_session.py", str(session), *sockets.options, *given)

    return begin


def lateness(came: Any, due: Any) -> Any:
    """How much later than the first each came, beyond what the recording says, seconds."""
    came, due = np.asarray(came), np.asarray(due)
    return came - came[0] - (due - due[0])


def test_a_recorded_session_comes_again(
    tmp_path: Path, replay: Callable[..., Child], sockets: Sockets
) -> None:
    folder = make_session(tmp_path, SHORT)
    session = Session(folder)
    child = replay(folder, "--lead", 5)
    assert child.end(90) == 0, child.text
    assert set(sockets.frames) == {"cam0", "cam1"}
    ages = []
    for view, camera in zip(session.views, ("cam0", "cam1"), strict=True):
        entries, came = session.frames(view), sockets.frames[camera]
        assert [frame.jpeg for _, frame in came] == [entry.read() for entry in entries]
        assert [frame.seq for _, frame in came] == list(range(len(entries)))
        late = lateness([at for at, _ in came], [entry.sent_at for entry in entries])
        assert abs(np.median(late)) < 1.0
        ages += [f.send_timestamp - f.timestamp for _, f in came if f.send_timestamp is not None]
    assert min(ages) > 0.004  # sent 5 ms after the capture, as recorded
    states = session.states
    values = np.array([(*state.joints, *state.pose) for _, state in sockets.states])
    assert (values == np.float32(np.hstack([states.joints, states.pose]))).all()
    assert sockets.endings == [len(states)]
    late = lateness([at for at, _ in sockets.states], states.sent_at)
    assert abs(np.median(late)) < 1.0
    samples = session.samples
    forces = np.concatenate([batch.forces for _, batch in sockets.batches])
    alines = np.concatenate([batch.alines for _, batch in sockets.batches])
    assert (forces == samples.forces).all() and (alines == samples.alines).all()
    assert [len(batch) for _, batch in sockets.batches] == [10] * 130
    sent = [samples.sent_at[rows][-1] for rows in samples.datagrams()]
    late = lateness([at for at, _ in sockets.batches], sent)
    assert abs(np.median(late)) < 1.0
    # The streams keep their place beside each other: all stamps moved by one amount.
    moved = [
        sockets.states[0][1].origin_timestamp - states.sampled_at[0],
        sockets.batches[0][1].timestamps[0] - samples.sampled_at[0],
        *(sockets.frames[f"cam{k}"][0][1].timestamp for k in (0, 1)),
    ]
    for k, view in enumerate(session.views):
        moved[2 + k] -= session.frames(view)[0].captured_at
    assert np.ptp(moved) < 1e-4


def test_an_older_rigs_session_twice_as_fast_without_the_robot(
    tmp_path: Path, replay: Callable[..., Child], sockets: Sockets
) -> None:
    folder = make_older_session(tmp_path, Made(seconds=1.0, views=("View1",), aline_length=ALINE))
    (folder / layout.robot_name(STAMP)).unlink()
    (folder / layout.results_name(STAMP)).unlink()  # in the receiver's clock, the rest is not
    session = Session(folder)
    child = replay(folder, "--lead", 5, "--speed", 2.0)
    assert child.end(90) == 0, child.text
    assert "robot: nothing recorded, left out" in child.text
    entries, came = session.all_frames, sockets.frames["cam0"]
    assert [frame.jpeg for _, frame in came] == [entry.read() for entry in entries]
    stamps = [frame.timestamp for _, frame in came]
    expected = (entries[-1].captured_at - entries[0].captured_at) / 2
    assert stamps[-1] - stamps[0] == pytest.approx(expected, abs=1e-5)
    forces = np.concatenate([batch.forces for _, batch in sockets.batches])
    assert (forces == session.samples.forces).all()
    assert sockets.states == []


def test_it_goes_round_until_ctrl_c_and_leaves_nothing_behind(
    tmp_path: Path, replay: Callable[..., Child], sockets: Sockets
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.5, aline_length=ALINE))
    logs = tmp_path / "logs"
    child = replay(folder, "--loop", "--only", "robot", "--speed", 2, "--log-dir", logs)
    wait_until(lambda: len(sockets.endings) >= 2, "the end of two episodes", 60)
    assert [path.name for path in logs.glob("*.log")] == ["robot_sender.log"]
    assert child.stop(signal.SIGINT) == 0, child.text
    assert sockets.batches == [] and sockets.frames == {}
    wait_until(lambda: len(sockets.endings) >= 3, "the end of the last episode")


def test_a_port_in_use_ends_everything(
    tmp_path: Path, program: Callable[..., Child], sockets: Sockets
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.5, aline_length=ALINE))
    given = [*sockets.options]
    given[1] = str(sockets.camera_port)  # the robot's: a socket of the test is bound to it
    child = program("scripts/replay_session.py", str(folder), *given, "--lead", "60")
    assert child.end(60) == 1
    assert "in use" in child.text and "Traceback" not in child.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--speed", "0"], "speed must be"),
        (["--only", "robot,lidar"], "no stream 'lidar'"),
        (["--lead", "-1"], "--lead must be"),
        (["--port-offset", "60000"], "is no port"),
        (["--only", "robot"], "nothing to play"),
    ],
)
def test_what_cannot_be_played_is_said_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2, aline_length=4))
    (folder / layout.robot_name(STAMP)).unlink()
    monkeypatch.setattr(sys, "argv", ["replay_session.py", str(folder), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_what_is_no_session_is_said_in_a_line(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    child = program("scripts/replay_session.py", str(tmp_path))
    assert child.end(30) == 2 and "no session in it" in child.text
    assert "Traceback" not in child.text


def test_the_size_of_datagrams_is_found(tmp_path: Path) -> None:
    small = Made(seconds=0.2, batch=7, aline_length=16)
    assert batch_of(Session(make_session(tmp_path / "a", small)).samples) == 7
    assert batch_of(Session(make_older_session(tmp_path / "b", small)).samples) == 7
    large = Made(seconds=0.2, batch=40, aline_length=16)
    samples = Session(make_session(tmp_path / "c", large)).samples
    assert batch_of(samples) == 15 and rate_of(samples) == pytest.approx(650)
