"""The rig's own record: what was written is what is read, and what is no record is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.rig import Reading
from sim.trace import COLUMNS, Trace, TraceError, read_trace

TIP = np.array([1.0, -2.0, 3.5])


def write(path: Path, rows: int = 30) -> None:
    trace = Trace(path)
    for row in range(2 * rows):  # twice as often as rows are kept
        reading = Reading(row / 200, 2.5, 0.25, -1.5, 0.125, 0.75, TIP)
        trace.add(1000.0 + row / 200, np.arange(6.0) + row, reading, row // rows, 70 + row // rows)
    trace.close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rig.csv"
    write(path)
    trace = read_trace(path)
    assert tuple(trace) == COLUMNS
    assert trace["wall_time"] == pytest.approx(1000.0 + np.arange(30) / 100)
    assert trace["j3"] == pytest.approx(2.0 + 2 * np.arange(30))
    assert trace["episode"].tolist() == [0] * 15 + [1] * 15
    assert trace["seed"].tolist() == [70] * 15 + [71] * 15
    last = {name: trace[name][-1] for name in COLUMNS}
    assert [last[f"tip_{axis}"] for axis in "xyz"] == TIP.tolist()
    assert (last["distance_mm"], last["lateral_mm"], last["depth_mm"]) == (2.5, 0.25, -1.5)
    assert (last["force_n"], last["tissue_mm"]) == (0.125, 0.75)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rig.csv"
    write(path)
    path.write_bytes(path.read_bytes()[:-7])
    assert len(read_trace(path)["seed"]) == 29
    path.write_text(",".join(COLUMNS) + "\n")
    assert [len(column) for column in read_trace(path).values()] == [0] * len(COLUMNS)


def test_a_column_is_missed_only_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "rig.csv"
    path.write_text("wall_time,j1\n1000.0,25.0\n")
    assert read_trace(path, ("j1",))["j1"].tolist() == [25.0]
    with pytest.raises(TraceError, match=r"rig\.csv: no column j2, seed: an older rig wrote it"):
        read_trace(path, ("j2", "j1", "seed"))


ONES = ["1"] * len(COLUMNS)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["hello"], "not a record"),
        ([], "not a record"),
        ([",".join(COLUMNS), "1,2"], "broken line: '1,2'"),
        ([",".join(COLUMNS), ",".join(["nan", *ONES[1:]])], "broken line"),
        ([",".join(COLUMNS), ",".join([*ONES[1:], "x" * 9000])], "broken line"),
        ([",".join(COLUMNS), ",".join([*ONES[1:], "1.5"])], "in column seed"),
        ([",".join(COLUMNS), ",".join([*ONES[1:], "-1"])], "in column seed"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path: Path, rows: list[str], said: str) -> None:
    path = tmp_path / "rig.csv"
    path.write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(TraceError, match=said) as raised:
        read_trace(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
