"""A package that is not there is one line with what brings it, and not a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

BLOCKED = """
import runpy, sys

package, sys.argv[:] = sys.argv[1], sys.argv[2:]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("tyro", "", ("senders/robot_sender.py",)),
        ("zmq", "", ("senders/jetson_camera_sender.py",)),
        ("msgpack", "", ("senders/force_sensor_sender.py",)),
        ("rich", "receiver", ("receiver/main.py",)),
        ("zmq", "serving", ("serving/policy_server.py",)),
        ("msgpack", "serving", ("serving/robot_client.py",)),
        ("zmq", "serving", ("serving/sim_client.py",)),
        ("numpy", "", ("scripts/replay_session.py",)),
        ("tyro", "", ("scripts/validate_session.py",)),
        ("rich", "receiver,sim,serving", ("scripts/bench.py",)),
        ("tyro", "receiver,serving,bags", ("scripts/compare_architectures.py",)),
        ("torch", "receiver,serving", ("scripts/profile_inference.py", "--out")),
        ("rich", "receiver,sim", ("scripts/demo.py",)),
        ("tyro", "sim", ("sim/rig_server.py",)),
        ("mujoco", "receiver,sim", ("scripts/demo.py",)),
        ("mujoco", "sim", ("sim/rig_server.py",)),
        ("mujoco", "sim", ("sim/pilot.py",)),
        ("mujoco", "sim", ("scripts/demonstrate.py",)),
        ("mujoco", "receiver,sim", ("scripts/make_tiny_checkpoint.py", "--on-rig", "--out")),
        ("torch", "receiver", ("scripts/make_tiny_checkpoint.py", "--out")),
        ("torch", "receiver,sim", ("scripts/train.py", "--out")),
    ],
)
def test_it_is_one_line_and_exit_code_2(
    tmp_path: Path, package: str, extra: str, command: tuple[str, ...]
) -> None:
    into = [str(tmp_path / "out")] if command[-1] == "--out" else []
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, package, *command, *into],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    program = Path(command[0]).name
    brings = f"pip install '.[{extra}]'" if extra else "pip install ."
    assert done.stderr == f"{program}: {package} is missing: {brings}\n"
    assert done.returncode == 2
