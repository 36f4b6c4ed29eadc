"""The benchmark of the policy server: its sides answer, its rows say what was measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc")

from scripts.bench import BENCHES
from scripts.bench_serving import SIDES, compare, rows
from scripts.bench_serving_plot import plot
from scripts.benches import Comparison, read_rows
from scripts.serving_sides.crowd import Client, CrowdOptions
from scripts.serving_sides.msgpack_service import pack, unpack
from scripts.serving_sides.runs import Crowd, find_lerobot
from scripts.serving_sides.scene import ACTION_ROWS, CAMERAS, Scene, check, scenes
from tests.support import Child

LEROBOT = find_lerobot(None)


def crowd(count: int, took_s: list[list[float]]) -> Crowd:
    took = tuple(np.array(seconds) for seconds in took_s)
    return Crowd("zmq", count, 30.0, 2.0, took, np.zeros(3), 0.5, (0.25, 0.25))


@pytest.fixture
def bench(program: Callable[..., Child], tmp_path: Path) -> Callable[..., dict[str, Comparison]]:
    """Runs it for a moment; the rows by name. Its picture must be whole."""

    def run(*given: str) -> dict[str, Comparison]:
        short = ["--rounds", "2", "--block", "3", "--warm-up", "2", "--seconds", "1"]
        output = ["--output.json", str(tmp_path / "rows.json"), "--output.plots", str(tmp_path)]
        child = program("scripts/bench_serving.py", *short, *given, *output)
        assert child.end(150) == 0, child.text
        assert (tmp_path / "serving.png").read_bytes()[-8:-4] == b"IEND"
        return {row.name: row for row in read_rows(tmp_path / "rows.json")[1]}

    return run


def test_without_lerobot_it_measures_the_rest_and_says_so(
    bench: Callable[..., dict[str, Comparison]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEROBOT_VENV", str(tmp_path / "none"))
    found = bench("--clients", "1", "3")
    first, *_ = found.values()
    assert first.theirs == "not measured: make venv-lerobot"
    assert first.ours.endswith(")")
    assert first.ratio is None
    assert first.met is None
    against = found[f"round trip, {SIDES['zmq']}; against {SIDES['msgpack']}"]
    assert against.ratio is not None
    names = [name for name in found if name.startswith("3 clients")]
    assert len(names) == 2  # over ZeroMQ and over gRPC
    assert all("Hz, p99" in found[name].ours for name in names)


@pytest.mark.slow
@pytest.mark.skipif(LEROBOT is None, reason="LeRobot is not installed: make venv-lerobot")
def test_with_lerobot_every_side_is_measured(bench: Callable[..., dict[str, Comparison]]) -> None:
    found = bench("--clients", "1", "--lerobot-python", str(LEROBOT))
    compared = [row for name, row in found.items() if name.startswith("round trip")]
    assert len(compared) == 5
    assert all(row.ratio is not None for row in compared)


def test_a_python_without_lerobot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make venv-lerobot"):
        find_lerobot(tmp_path / "python")


def test_a_row_compares_the_medians_and_says_whether_the_goal_is_met() -> None:
    times = {"zmq": np.array([1e-3, 1e-3, 9e-3]), "stock": np.array([16e-3, 16e-3, 1e-3])}
    row = compare(times, "zmq", "stock", 15.0)
    assert row.ratio == pytest.approx(16.0)
    assert row.met is True
    assert row.goal == "at least 15x"
    assert compare(times, "stock", "zmq", 1.0).met is False
    assert compare(times, "grpc", "stock", 1.0).met is None


def test_clients_at_once_have_rates_and_one_distribution(tmp_path: Path) -> None:
    few, many = crowd(1, [[0.001] * 60]), crowd(2, [[0.002] * 60, [0.004] * 30])
    np.testing.assert_allclose(many.rates_hz, [30.0, 15.0])
    assert many.percentile_ms(50) == pytest.approx(2.0)
    assert crowd(1, [[]]).percentile_ms(99) == np.inf
    times = {"zmq": np.array([1e-3, 2e-3])}
    table = rows(times, [few, many])
    assert "15.0 Hz, p99 4.0 ms, server 500 ms/s" in table[-1].ours
    assert table[-2].name.startswith("1 clients")
    assert plot(times, SIDES, [few, many], tmp_path).stat().st_size > 10_000


def test_an_answer_to_another_observation_is_found_out() -> None:
    source = scenes()
    first, second = next(source), next(source)
    check(first, np.tile(first.state, (ACTION_ROWS, 1)))
    with pytest.raises(SystemExit, match="step 2"):
        check(second, np.tile(first.state, (ACTION_ROWS, 1)))


def test_arrays_survive_a_request() -> None:
    scene = next(scenes())
    message = {"endpoint": "get_action", "data": {"view": scene.pictures[CAMERAS[0]], "text": "t"}}
    back = unpack(pack(message))
    np.testing.assert_array_equal(back["data"]["view"], scene.pictures[CAMERAS[0]])
    assert back["data"]["text"] == "t"


class Slow:
    """An exchange that takes longer than a period."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def begin(self, timeout_s: float) -> None:
        pass

    def exchange(self, scene: Scene) -> np.ndarray:
        self.steps.append(scene.step)
        threading.Event().wait(0.05)
        return np.tile(scene.state, (ACTION_ROWS, 1))

    def close(self) -> None:
        pass


def test_a_client_that_is_too_late_leaves_ticks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("scripts.serving_sides.crowd.connect", lambda *_: slow)
    client = Client(0, CrowdOptions("zmq", "-", (0,), 1, hz=100.0, seconds=0.5))
    client.run(time.monotonic())
    assert 1 <= len(client.took_s) <= 10
    assert len(client.took_s) <= len(slow.steps) <= 11
    assert min(client.took_s) >= 0.05


def test_it_is_one_of_the_benchmarks() -> None:
    assert "serving" in BENCHES
