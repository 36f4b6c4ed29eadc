"""Every benchmark runs from its command line in a short mode and leaves its rows and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common import endpoints
from scripts.benches import Comparison, read_rows, report
from scripts.loaded_receiver import Load, lateness_of
from scripts.profile_receiver import py_spy, read_collapsed
from scripts.stand_in_receiver import pass_seconds
from tests.support import Child, free_ports, is_free

USED = (endpoints.CAMERA, endpoints.ROBOT, endpoints.SENSOR, endpoints.ACTION, endpoints.TIME)


def free_offset() -> int:
    """Added to the usual ports, it gives ports that are free now."""
    for _ in range(100):
        offset = free_ports(1)[0] - endpoints.CAMERA.port
        if all(is_free(e.port + offset) for e in USED):
            return offset
    raise AssertionError("no free ports")


@pytest.fixture
def bench(program: Callable[..., Child], tmp_path: Path) -> Callable[..., list[Comparison]]:
    """Runs one to its end; the rows that it wrote. Its pictures must be whole."""

    def run(script: str, *given: str, pictures: int = 1) -> list[Comparison]:
        output = ["--output.json", str(tmp_path / "rows.json"), "--output.plots", str(tmp_path)]
        child = program(f"scripts/{script}", *given, *output)
        assert child.end(150) == 0, child.text
        found = list(tmp_path.glob("*.png"))
        assert len(found) >= pictures, found
        for picture in found:
            assert picture.read_bytes()[-8:-4] == b"IEND", picture
        rows = read_rows(tmp_path / "rows.json")[1]
        assert rows
        return rows

    return run


@pytest.mark.slow
def test_lateness(bench: Callable[..., list[Comparison]], tiny_checkpoint: Path) -> None:
    (row,) = bench(
        "bench_lateness.py",
        *("--rates-hz", "20", "--seconds", "1", "--checkpoint", str(tiny_checkpoint)),
        *("--designs", "thread", "single", "--port-offset", str(free_offset())),
    )
    assert "at 20 Hz" in row.name
    assert "ms" in row.ours
    assert row.ratio is not None


def test_freshness(bench: Callable[..., list[Comparison]]) -> None:
    simulated, real = bench(
        "bench_freshness.py",
        *("--reuse", "2", "--passes-ms", "50", "--simulated", "60", "--real", "2"),
        *("--confirmed", "50", "2", "--port-offset", str(free_offset())),
    )
    assert simulated.ratio is not None
    assert simulated.ratio > 1.0  # virtual time: the same on every machine
    assert real.ours


def test_scale(bench: Callable[..., list[Comparison]]) -> None:
    rows = bench(
        "bench_scale.py",
        *("--cameras", "2", "--resolutions", "--sensor-hz", "--seconds", "1.5"),
        *("--port-offset", str(free_offset())),
    )
    (row,) = rows
    assert row.ours == row.theirs  # one load, beside itself
    assert row.ratio == 1.0


@pytest.mark.slow
def test_profile(bench: Callable[..., list[Comparison]], tiny_checkpoint: Path) -> None:
    if py_spy() is None:
        pytest.skip("py-spy is not installed")
    bench(
        "profile_receiver.py",
        *("--seconds", "2", "--checkpoint", str(tiny_checkpoint)),
        *("--port-offset", str(free_offset())),
    )


def test_clocks(bench: Callable[..., list[Comparison]]) -> None:
    bench("bench_clocks.py", "--minutes", "0.5", "--seeds", "1")


@pytest.mark.slow
def test_ingest(bench: Callable[..., list[Comparison]]) -> None:
    bench(
        "bench_ingest.py",
        *("--seconds", "0.5", "--turns", "1", "--loss-s", "0.5"),
        *("--port-offset", str(free_offset())),
    )


@pytest.mark.slow
def test_slow_part(bench: Callable[..., list[Comparison]], tiny_checkpoint: Path) -> None:
    bench("bench_slow_part.py", "--rounds", "2", "--checkpoint", str(tiny_checkpoint))


def test_a_missed_deadline_is_as_late_as_the_action_that_came_instead() -> None:
    late, missed = lateness_of([1.0, 1.1, 1.4, 1.5], [0.1, 0.2, 5.0, 0.3], 0.1)
    assert missed == 2
    np.testing.assert_allclose(late, [0.1, 0.2, 205.0, 105.0, 5.0, 0.3])


def test_stacks_count_for_the_innermost_function_of_ours() -> None:
    wait = "process 7:python receiver/main.py;thread (8): actions;run (receiver/actions.py:101)"
    profile = read_collapsed(
        [
            f"{wait};act (policies/qwen_vla/policy.py:80);linear (torch/nn/functional.py:9) 5",
            f"{wait};act (policies/qwen_vla/policy.py:81) 2",
            "process 7:python receiver/main.py;process 9:python -c x;thread (9): MainThread;"
            "main (receiver/encoding_worker.py:3);decode (cv2/x.py:1) 4",
            "not a line of stacks",
        ]
    )
    assert profile.functions["actions", "act (policies/qwen_vla/policy.py)"] == 7
    assert profile.threads["slow half's process: MainThread"] == 4
    assert profile.whole == 11


def test_a_load_never_sends_a_datagram_that_is_none() -> None:
    for hz in (1.0, 65.0, 650.0, 6500.0):
        arguments = Load(sensor_hz=hz).arguments(0)
        assert 1 <= int(arguments[arguments.index("--batch") + 1]) <= 15


def test_passes_spread_around_their_median() -> None:
    passes = pass_seconds(0.1, 0)
    assert np.median(passes) == pytest.approx(0.1, rel=0.01)
    assert 0.01 < (passes > 0.13).mean() < 0.03


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    from scripts.benches import BenchOutput

    rows = [Comparison("a", "1 ms", "2 ms", 2.0, "≥ 1", True), Comparison("b", "not measured")]
    report("title", rows, BenchOutput(json=tmp_path / "x" / "rows.json"))
    assert read_rows(tmp_path / "x" / "rows.json") == ("title", rows)
    assert json.loads((tmp_path / "x" / "rows.json").read_text())["title"] == "title"
