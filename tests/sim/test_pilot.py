"""The scripted expert at the controls of a rig process, and the score shown in a receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.scoreboard import Scoreboard, read_score
from sim.messages import RigState
from sim.pilot import Pilot
from sim.rig import InsertionRig
from sim.task import Judge
from tests.support import ROOT, free_ports, wait_until


def state_of(rig: InsertionRig, number: int) -> RigState:
    return RigState(
        seq=number,
        run=1,
        time=1e9 + rig.time_s,
        sim_time_s=rig.time_s,
        episode=rig.episode,
        seed=rig.seed,
        config=rig.config,
        qpos=rig.data.qpos,
        pose=rig.pose,
        force_n=rig.force_n,
        samples=rig.data.qpos[:0].reshape(0, 3),
    )


def test_the_pilot_does_one_episode_after_the_other() -> None:
    rig, pilot = InsertionRig(seed=4), Pilot()
    number = 0
    for seed in (4, 9):
        rig.reset(seed)
        judge = Judge()
        while rig.time_s < 5.5:
            # States come at 260 Hz, the pilot looks at every second or third.
            joints = pilot.steer(state_of(rig, number))
            if joints is not None:
                rig.command_joints(joints)
            rig.step((10, 15)[number % 2])
            number += 1
            verdict = judge.see(rig.read())
        assert verdict.success
    assert pilot.steer(state_of(rig, number)) is not None
    assert pilot.steer(state_of(rig, number)) is None  # the same state again


def test_a_pilot_without_a_rig_says_so() -> None:
    state, command = free_ports(2)
    arguments = ["--state-port", str(state), "--command-port", str(command)]
    done = subprocess.run(
        [sys.executable, "sim/pilot.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "start it with python sim/rig_server.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_scoreboard_tells_the_receiver(tmp_path: Path) -> None:
    score = tmp_path / "score.jsonl"
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as told, os.fdopen(writing, "wb") as to:
        os.set_blocking(reading, False)
        board = Scoreboard(score, to)
        heard = bytearray()

        def hears(words: str) -> bool:
            heard.extend(told.read() or b"")
            return words in heard.decode()

        episode = {"number": 0, "seed": 3, "success": True, "took_s": 4.2, "rms_mm": 0.31}
        episode["reason"] = ""
        score.write_text(json.dumps(episode) + "\n")
        wait_until(lambda: hears("note 1 of 1 episodes succeeded"), "the first note", 20)
        failed = episode | {"number": 1, "success": False, "rms_mm": None, "reason": "force"}
        with score.open("a") as file:
            file.write(json.dumps(failed) + "\n" + '{"number": 2, ')  # the third half written
        wait_until(lambda: hears("note 1 of 2 episodes succeeded"), "the second note", 20)
        assert "failed, force" in heard.decode()
        assert len(read_score(score)) == 2
        board.close()
