"""The comparison as people run it: real processes, real time, its files, its bad options."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.comparison.measures import METHODS
from tests.scripts.bags import Said, write
from tests.support import Child, wait_until

PROGRAM = "scripts/compare_architectures.py"
Start = Callable[..., Child]


def rows_of(path: Path) -> np.ndarray:
    return np.genfromtxt(path, delimiter=",", skip_header=1)


@pytest.mark.timeout(400)
def test_four_architectures_on_the_shipped_bag(program: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = program(
        PROGRAM, "--seconds", "2.4", "--delays", "0.5", "--chunk-size", "60", "--out", str(out)
    )
    assert child.end(300) == 0, child.text
    assert all(method in child.text for method in METHODS)
    with (out / "table.csv").open() as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert tuple(table) == METHODS
    for method in METHODS:
        folder = out / "delay_0.5s" / method
        org, infer = rows_of(folder / "org.csv"), rows_of(folder / "infer.csv")
        assert org.shape == infer.shape == (120, 7)
        np.testing.assert_allclose(org[:, 0], np.arange(120) / 50)
        np.testing.assert_allclose(org, rows_of(out / "delay_0.5s/threaded/org.csv"))
        # The table says what the files hold.
        error = np.abs(infer[:, 1:] - org[:, 1:])
        assert float(table[method]["mae"]) == pytest.approx(error.mean(), rel=1e-3, abs=1e-5)
        assert float(table[method]["mae joint_5"]) == pytest.approx(
            error[:, 4].mean(), rel=1e-3, abs=1e-5
        )
        picture = cv2.imread(str(folder / "all_joints_comparison.png"))
        assert picture is not None and picture.std() > 5
    for name in ("comparison_joints.png", "comparison_errors.png"):
        assert cv2.imread(str(out / "delay_0.5s" / name)) is not None
    assert "| synchronous | 0.5 |" in (out / "table.md").read_text()
    # 60 rows last 1.2 s: the synchronous loop waits once at least, for a whole prediction each
    # time, and has no action meanwhile; the others never wait for one by design.
    synchronous = table["synchronous"]
    assert int(synchronous["stalls"]) >= 1
    assert float(synchronous["longest_gap_s"]) >= 0.5
    for method in METHODS[1:]:
        share = float(table[method]["without_fresh_share"])
        assert share < float(synchronous["without_fresh_share"]), method


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--delays", "-1"], "--delays"),
        (["--chunk-size", "1"], "--chunk-size"),
        (["--aggregate-fn-name", "mean"], "no aggregation 'mean'"),
        (["missing.bag"], "missing.bag: no such file"),
        (["README.md"], "README.md: cannot be read as a bag"),
        (["--topic", "/x"], "no JointState on /x; there are /joint_states"),
        (["--joints", "elbow"], "no joint elbow; there are joint_1"),
    ],
)
def test_bad_options_end_with_one_line(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from scripts import compare_architectures

    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr("sys.argv", [PROGRAM, *arguments])
    with pytest.raises(SystemExit) as ended:
        compare_architectures.main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.timeout(300)
def test_a_stop_ends_it_and_its_server(program: Start, tmp_path: Path) -> None:
    said = [Said(0.02 * k, ("a",), (0.001 * k,)) for k in range(3000)]
    bag, out = write("ros1", tmp_path, said), tmp_path / "out"
    child = program(PROGRAM, str(bag), "--methods", "server-client", "--out", str(out))
    log = out / "run.log"
    wait_until(lambda: log.exists() and "moving" in log.read_text(), "motion", 150)
    assert child.stop(signal.SIGINT, 60) == 130, child.text
    assert "stopped" in child.text
    assert "Traceback" not in child.text
    left = [
        pid
        for pid in Path("/proc").iterdir()
        if pid.name.isdigit() and str(out).encode() in _command_line(pid)
    ]
    assert left == []


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return os.devnull.encode()
