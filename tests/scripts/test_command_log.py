"""The check of a robot's commands finds what it should, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.command_log import CommandLog, Limits, read_commands, violations
from scripts.serving_rig import stamped_ages
from serving.bodies.simulated import SimulatedBody

LIMITS = Limits(low=-10.0, high=10.0, step=2.0, speed=60.0, fps=30.0)


def log_of(
    targets: list[float], period_s: float = 1 / 30, holds: tuple[int, ...] = ()
) -> CommandLog:
    rows = np.array(targets, np.float64)[:, None]
    is_move = np.ones(len(targets), bool)
    is_move[list(holds)] = False
    # The robot is where it was sent last.
    measured = np.vstack([rows[:1], rows[:-1]])
    return CommandLog(100 + np.arange(len(targets)) * period_s, is_move, rows, measured)


def test_motions_at_the_limits_pass() -> None:
    there = [2.0 * k for k in range(6)]
    assert violations(log_of(there + there[::-1]), LIMITS) == []
    assert violations(log_of([]), LIMITS) == []


@pytest.mark.parametrize(
    ("targets", "holds", "words"),
    [
        ([9.0, 10.5], (), "out of range by 0.5"),
        ([-9.0, -11.0], (), "out of range by 1"),
        ([0.0, 2.1], (), "step of 2.1"),
        ([0.0, float("nan")], (), "out of range by inf"),
        # After a hold, the way is counted from where the robot is.
        ([0.0, 0.0, 3.0], (1,), "step of 3"),
    ],
)
def test_what_breaks_a_limit_is_found(
    targets: list[float], holds: tuple[int, ...], words: str
) -> None:
    found = violations(log_of(targets, holds=holds), LIMITS)
    assert found and any(words in line for line in found)


def test_commands_that_come_too_often_are_too_fast() -> None:
    up = [1.9 * k for k in range(5)]
    many = (up + up[::-1]) * 20
    assert violations(log_of(many), LIMITS) == []
    rising = [-9.9 + 0.5 * k for k in range(40)]
    assert violations(log_of(rising, period_s=1 / 30), LIMITS) == []
    assert any("too fast" in line for line in violations(log_of(rising, 1 / 300), LIMITS))


def test_many_violations_are_cut_short() -> None:
    found = violations(log_of([0.0, 5.0] * 40), LIMITS)
    assert len(found) == 21 and found[-1].startswith("… and ")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    body = SimulatedBody({"joints": 2, "record": str(path), "cameras": 0})
    assert len(read_commands(path).at) == 0
    body.open()
    body.move(np.array([1.0, -1.0]))
    body.hold()
    body.close()
    log = read_commands(path)
    assert log.is_move.tolist() == [True, False]
    assert log.targets[0].tolist() == [1.0, -1.0]
    assert log.measured.shape == (2, 2) and (np.diff(log.at) >= 0).all()
    whole = path.read_text()
    path.write_text(whole + "12.5,move,1")  # killed while it wrote
    assert len(read_commands(path).at) == 2
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError):
        read_commands(path)


def test_ages_come_from_the_stamps() -> None:
    import time

    now = time.monotonic()
    stamps = [(time.time() - age) % 1000.0 for age in (0.5, 1.25)]
    rows = np.array([[0.0, stamp] for stamp in stamps])
    log = CommandLog(np.full(2, now), np.ones(2, bool), rows, rows)
    assert stamped_ages(log) == pytest.approx([0.5, 1.25], abs=0.05)
