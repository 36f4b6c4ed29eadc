"""What takes minutes: `make test-slow` runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.scripts.test_demo import demo
from tests.support import ROOT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_sender_machine_installs_and_runs_without_torch(tmp_path: Path) -> None:
    """As on a Jetson: a plain environment, the base package, a sender run from its checkout."""
    names = ["common", "senders", "receiver", "policies", "sim", "scripts"]
    files = ["pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    for name in files:
        shutil.copy(ROOT / name, tmp_path / "checkout")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(tmp_path / "checkout")], check=True)
    for package in ("torch", "transformers", "mujoco"):
        found = subprocess.run(
            [python, "-c", f"import {package}"], check=False, capture_output=True
        )
        assert found.returncode != 0, f"{package} came with the base package"
    sender = str(tmp_path / "checkout" / "senders" / "force_sensor_sender.py")
    given = ["--driver", "synthetic", "--duration", "2"]
    ran = subprocess.run(
        [python, sender, *given], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    # It is importable without the checkout, too.
    imported = "import senders.robot_sender, receiver.options, common.wire"
    subprocess.run([python, "-c", imported], check=True, cwd=tmp_path)


def test_five_minutes_of_the_demo_hold_their_memory(tmp_path: Path) -> None:
    process = demo(tmp_path, tmp_path / "tiny", "--duration", "300")
    latest = tmp_path / "runs" / "latest"
    output: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True)
    reader.start()
    wait_until(lambda: list(latest.glob("async_inference_*")), "the first results", 120)
    children = psutil.Process(process.pid).children(recursive=True)
    programs = {c.cmdline()[1]: c for c in children if len(c.cmdline()) > 1}
    assert len(programs) == 5
    pause = threading.Event()
    pause.wait(60)  # caches fill
    before = {name: child.memory_info().rss for name, child in programs.items()}
    pause.wait(200)
    after = {name: child.memory_info().rss for name, child in programs.items()}
    grown_mb = {name: (after[name] - before[name]) / 2**20 for name in programs}
    print(grown_mb)
    assert process.wait(120) == 0, "".join(output)[-3000:]
    assert max(grown_mb.values()) < 8, grown_mb
    summary = json.loads((latest / "summary.json").read_text())
    assert summary["action_hz"] == pytest.approx(10.0, rel=0.01)
    assert summary["sensor_lost"] == 0
    assert summary["malformed"] == {}
    print({k: v for k, v in summary.items() if isinstance(v, (int, float))})
