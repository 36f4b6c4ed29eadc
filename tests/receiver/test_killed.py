"""SIGKILL at any moment: the session can be read up to its last second."""

from __future__ import annotations

import random
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.jpeg import jpeg_size
from common.session import Session, find_sessions
from tests.receiver.test_programs import IN_ONE, Setup, Start
from tests.support import Child


@pytest.fixture
def setup(program: Start, tiny_checkpoint: Path, tmp_path: Path) -> Setup:
    return Setup(program, tiny_checkpoint, tmp_path)


def recovered(folder: Path) -> Session:
    tool = Child("scripts/recover_session.py", str(folder))
    assert tool.end() == 0, tool.text
    return Session(folder)


def assert_complete_up_to(session: Session, killed_at: float, lived_s: float) -> None:
    """Everything is readable, and nothing that is over a second old is missing."""
    assert session.unfinished == []
    for frame in session.all_frames:
        jpeg_size(frame.read())
    ends = [
        times[-1]
        for times in (session.states.received_at, session.samples.received_at)
        if len(times)
    ]
    ends += [session.frames(view)[-1].arrived_at for view in session.views]
    # Senders need up to a second to find a receiver that was started again.
    assert len(ends) == 7 or lived_s < 1.5
    # A picture that was complete and not yet in the index has no time of arrival.
    assert not ends or np.nanmin(ends) > killed_at - 1.0
    (npz,) = session.folder.glob("sensor_data_*.npz")
    assert zipfile.ZipFile(npz).testzip() is None
    for view in session.views:
        seqs = [frame.seq for frame in session.frames(view) if frame.seq is not None]
        assert seqs == sorted(seqs)
        missing = (seqs[-1] - seqs[0] + 1) - len(seqs)
        assert missing <= 0.1 * len(seqs) + 3  # the sender drops some on a busy machine


def kill_and_recover(setup: Setup, moment_s: float) -> Session:
    receiver = setup.receiver("--save-data", *IN_ONE)
    receiver.wait_for(r"\[RECORD\] writing into")
    threading.Event().wait(moment_s)  # the moment is the point, no condition to wait for
    killed_at = time.time()
    receiver.kill()
    folder = find_sessions(setup.folder)[-1]
    session = recovered(folder)
    assert_complete_up_to(session, killed_at, moment_s)
    return session


def test_a_killed_session_is_recovered(setup: Setup) -> None:
    senders = [setup.sender(name) for name in ("robot", "cameras", "sensor")]
    session = kill_and_recover(setup, 2.0)
    assert len(session.samples) > 300
    # The next start makes a folder of its own and touches nothing of the old one.
    receiver = setup.receiver("--save-data", "--duration", "1", *IN_ONE)
    assert receiver.end() == 0
    assert len(find_sessions(setup.folder)) == 2
    assert all(sender.stop() == 0 for sender in senders)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments(setup: Setup) -> None:
    senders = [setup.sender(name) for name in ("robot", "cameras", "sensor")]
    moments = random.Random(7)
    for number in range(20):
        session = kill_and_recover(setup, moments.uniform(0.3, 6.0))
        print(
            f"kill {number + 1}: {len(session.all_frames)} frames, {len(session.samples)} samples"
        )
    assert len(find_sessions(setup.folder)) == 20
    assert all(sender.stop() == 0 for sender in senders)
