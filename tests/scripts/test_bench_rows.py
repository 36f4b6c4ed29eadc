"""What the benchmarks' rows say of made-up figures, and what of them reaches `make bench`."""

from __future__ import annotations

import itertools
import math
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common import endpoints, wire
from scripts import bench, bench_lateness, bench_scale, bench_slow_part, load_rig
from scripts.bench_fast_parts import Side, error_rows, folded_sides, random_weights, rows_of
from scripts.benches import Comparison, read_rows
from scripts.loaded_receiver import Run

LATENESS_MS = np.array([0.1] * 989 + [0.5] * 10 + [80.0])


def run_of(
    lateness_ms: NDArray[np.float64] = LATENESS_MS, misses: int = 0, cpu: float = 100
) -> Run:
    summary = {"frames": {"a": 10}, "frames_dropped": 0, "sensor_samples": 10, "sensor_lost": 0}
    summary |= {"action_ms_p50": 1.0, "vl_ms_mean": 50.0}
    machine = "machine: 2 cores, load 1.0, busy 20%, steal 3.0%"
    return Run(lateness_ms, np.empty(0), misses, summary, cpu, 0.0, machine)


def given(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *words])


# The fast parts.


def test_what_misses_the_tolerance_does_not_meet_the_goal() -> None:
    def side(name: str, error: float, limit: float = math.inf) -> Side:
        return Side(name, lambda vl, window: vl, 100.0, limit, error)

    sides = [
        side("plain, float32", 1e-6),
        side("plain, bfloat16", 1e-2),
        side("folded, 16-bit weights", 6e-3, 2e-2),
        side("folded, int8 weights", 2.3e-2, 2e-2),
    ]
    times = {one.name: [5.0, 5.5, 6.0] for one in sides}
    narrow, int8 = rows_of(sides, times, 35.0, 2, goal=True)
    assert narrow.met is True and int8.met is False
    assert "8 ms" in int8.goal and "0.02" in int8.goal
    assert [row.met for row in error_rows(sides)] == [None, None, True, False]
    assert [row.met for row in rows_of(sides, times, 35.0, 1, goal=False)] == [None, None]


def test_every_folded_side_has_a_tolerance() -> None:
    from policies.qwen_vla import tiny
    from policies.qwen_vla.config import PolicyConfig
    from policies.qwen_vla.fast import build_fast

    config = replace(PolicyConfig(), sensor=tiny.SENSOR, expert=tiny.EXPERT)
    cpu = torch.device("cpu")
    fast = build_fast(config, *random_weights(config), cpu, torch.float32)
    first, *others = folded_sides(fast)
    assert first.name.startswith("folded, float32") and first.limit == 1e-5
    assert len(others) >= 2 and {side.limit for side in others} == {2e-2}
    assert len({side.name for side in others}) == len(others)
    assert all(side.read_mb > 0 for side in others)


# The load.


def test_a_load_that_has_to_wait_leaves_no_gap_in_its_stamps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_s = itertools.cycle((0.0, 0.00113, 0.0))
    monkeypatch.setattr(load_rig, "wall", lambda: time.time() + next(late_s))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30.0)
        offset = sock.getsockname()[1] - endpoints.SENSOR.port
        options = load_rig.LoadOptions("127.0.0.1", offset, sensor_hz=6500.0, batch=15)
        stop = threading.Event()
        thread = threading.Thread(target=load_rig._sensor, args=(options, stop))
        thread.start()
        try:
            batches = [wire.decode_samples(sock.recv(65_536)) for _ in range(20)]
        finally:
            stop.set()
            thread.join()
    stamps = np.concatenate([batch.timestamps for batch in batches])
    # On a grid, whether or not this machine lost a datagram.
    steps = 6500 * (stamps - stamps[0])
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.02)
    assert np.diff(steps[:15]) == pytest.approx(1.0, abs=0.02)


# Lateness.


def test_lateness_says_its_middle_its_tail_and_its_worst() -> None:
    runs = {("process", 100.0): run_of(), ("single", 100.0): run_of(10 * LATENESS_MS, misses=7)}
    (row,) = bench_lateness.comparisons(runs, ("process", "single"))
    assert "p50 / p99 / p99.9 / worst" in row.name and "100 Hz" in row.name
    assert row.ours == "0.10 / 0.50 / 0.58 / 80.00 ms, 0 of 1000 missed"
    assert row.theirs.startswith("1.00 / 5.00 / ") and row.theirs.endswith("7 of 1000 missed")
    assert row.met is True and row.ratio == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("hours", "misses", "met"), [(1.0, 0, True), (1.0, 2, False), (0.5, 2, False), (0.5, 0, None)]
)
def test_what_a_soak_found_is_kept_and_shown_with_its_date(
    hours: float,
    misses: int,
    met: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    kept = tmp_path / "runs" / "soak.json"
    monkeypatch.setattr(bench_lateness, "SOAK", kept)
    monkeypatch.setattr(bench, "SOAK", kept)
    monkeypatch.setattr(bench_lateness, "make_checkpoint", lambda path: None)
    monkeypatch.setattr(bench_lateness, "measure", lambda *_: run_of(misses=misses))
    title, (row,) = bench.soaked()
    assert row.ours == "not measured: make soak" and row.met is None

    given(monkeypatch, "--hours", str(hours))
    assert bench_lateness.main() == 0
    title, (row,) = bench.soaked()
    assert time.strftime("%Y-") in title and "steal 3.0%" in title
    assert f"{hours:g} h" in row.name and f"{misses} of 1000 missed" in row.ours
    assert row.met is met


# Scale.


def test_every_point_of_a_sweep_has_its_row() -> None:
    def point(sweep: str, value: str, cpu: float) -> bench_scale.Point:
        return bench_scale.Point(sweep, value, 1.0, run_of(cpu=cpu))

    cameras = [point("cameras", str(n), 100.0 * n) for n in (1, 2, 4)]
    rows = bench_scale._rows([*cameras, point("sensor, Hz", "65", 50.0)])
    names = [row.name.rpartition("time, ")[2] for row in rows]
    assert names == ["cameras 2 against 1", "cameras 4 against 1", "sensor, Hz 65 against 65"]
    assert [row.ratio for row in rows] == pytest.approx([2.0, 4.0, 1.0])
    assert "200 ms/s" in rows[0].ours and "100 ms/s" in rows[0].theirs


# The slow part.


def test_a_missed_goal_is_a_row_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    monkeypatch.setattr(bench_slow_part, "difference", lambda sides: 1.0)
    words = ["--rounds", "1", "--checkpoint", str(tiny_checkpoint)]
    words += ["--output.json", str(tmp_path / "rows.json"), "--output.plots", str(tmp_path)]
    given(monkeypatch, *words)
    threads = torch.get_num_threads()
    try:
        assert bench_slow_part.main() == 0
    finally:
        torch.set_num_threads(threads)
    title, rows = read_rows(tmp_path / "rows.json")
    assert [row.met for row in rows if "difference" in row.name] == [False]
    assert title.endswith("on the CPU") or torch.cuda.is_available()


def test_a_title_names_the_device_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert bench_slow_part._name_of(torch.device("cpu")) == "the CPU"
    assert bench_slow_part._name_of(torch.device("cuda", 1)) == "GPU 1"


# All of them.


@pytest.mark.parametrize("there", [True, False])
def test_with_a_gpu_the_slow_part_is_measured_at_full_size(
    there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    asked = {name for name in bench.BENCHES if "--full" in bench._command(name, tmp_path, tmp_path)}
    assert asked == ({"slow_part"} if there else set())


def test_the_table_says_what_else_used_the_machine_and_what_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SOAK", tmp_path / "soak.json")
    monkeypatch.setattr(bench, "_run", lambda name, *_: (name, [Comparison("a row", "1 ms")]))
    given(monkeypatch, "--only", "clocks", "lateness")
    assert bench.main() == 0
    said = capsys.readouterr().out
    assert said.count("a row") == 2 and said.count("not measured: make soak") == 1
    assert said.count("steal") == 2
