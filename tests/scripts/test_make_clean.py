"""`make clean` takes what can be made again, and nothing that took hours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(folder: Path, *arguments: str) -> str:
    # Under `make test VENV=DIR` a make inherits that: it must not be the one that is cleaned here.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    here = ["VENV=.venv", "LEROBOT_VENV=.venv-lerobot"]
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", *here, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (".venv/bin/python", ".mypy_cache/a", "sim/__pycache__/a", "runs/policy/weights"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("")
    return tmp_path


def test_clean_keeps_runs(checkout: Path) -> None:
    make(checkout, "clean")
    left = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert left == {"runs/policy/weights"}


def test_clean_runs_says_what_goes_and_removes_it_when_told_so(checkout: Path) -> None:
    assert "runs/policy" in make(checkout, "clean-runs")
    assert (checkout / "runs/policy/weights").exists()
    assert "runs/policy" in make(checkout, "clean-runs", "YES=1")
    assert not (checkout / "runs").exists()
    assert (checkout / ".venv/bin/python").exists()
