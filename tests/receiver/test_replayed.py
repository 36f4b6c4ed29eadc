"""Record, replay, record again: the second recording holds what the first does, in its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.session import Session, find_sessions
from scripts.compare_sessions import compare, timing_ms
from tests.receiver.test_programs import Setup, Start


@pytest.fixture
def setup(program: Start, tiny_checkpoint: Path, tmp_path: Path) -> Setup:
    return Setup(program, tiny_checkpoint, tmp_path)


def test_the_recording_of_a_replay_is_the_recording(setup: Setup) -> None:
    senders = [setup.sender(name) for name in ("robot", "cameras", "sensor")]
    receiver = setup.receiver("--save-data", "--duration", "3")
    assert receiver.end() == 0
    assert all(sender.stop() == 0 for sender in senders)
    (first,) = find_sessions(setup.folder)

    again = setup.receiver("--save-data")
    again.wait_for(r"\[WAIT\]")
    ports = ["--robot-port", str(setup.robot), "--camera-port", str(setup.camera)]
    ports += ["--sensor-port", str(setup.sensor)]
    replay = setup.start("scripts/replay_session.py", str(first), *ports)
    assert replay.end() == 0, replay.text
    again.wait_for(r"\[RECORD\] finished")
    assert again.stop() == 0
    second = next(folder for folder in find_sessions(setup.folder) if folder != first)

    streams = compare(Session(first), Session(second))
    assert [s.name for s in streams] == [*(f"View{n}" for n in range(1, 6)), "robot", "sensor"]
    assert all(s.equal for s in streams), streams
    # What the machine does meanwhile shows in the tail; the middle shows the timeline.
    assert np.median(timing_ms(streams)) < 10.0
    assert setup.summary()["malformed"] == {} and setup.summary()["sensor_lost"] == 0
