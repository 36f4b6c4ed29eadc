"""The simulation client with LeRobot's policies: on LeRobot's own server, and on ours.

A small ACT of random weights on the insertion rig. In lock-step the simulation is the same each
time, so both servers must bring about the same episode, and LeRobot's own prediction is what the
first chunk is compared to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("grpc", reason="gRPC is not installed: make test-lerobot")
pytest.importorskip("gymnasium", reason="gymnasium is not installed: make test-lerobot")
pytest.importorskip("mujoco", reason="MuJoCo is not installed: make test-lerobot")

from senders.drivers import DriverError
from serving.sim_client import SimClient, SimClientConfig
from sim.layout import HOME_DEG
from sim.model import build_model
from sim.rendering import RigRenderer
from tests.lerobot import checkpoints
from tests.lerobot.stock import FPS, StockServer
from tests.support import Child, free_ports

VIEW = "View4"
ENV = {"type": "insertion", "views": [VIEW], "width": 96, "height": 96, "episode_s": 2.0}


@pytest.fixture(scope="module", autouse=True)
def rendering() -> None:
    try:
        RigRenderer(build_model(), 32, 32).close()
    except DriverError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six joints and one picture in, targets about the home pose out."""
    folder = tmp_path_factory.mktemp("act")
    camera = f"observation.images.{VIEW}"
    return checkpoints.act(folder, camera=camera, around=HOME_DEG, spread=2.0)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = StockServer(tmp_path_factory.mktemp("stock"))
    yield server.address
    server.close()


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    port, zmq_port = free_ports(2)
    child = Child(
        *("serving/policy_server.py", "--port", str(port), "--zmq_port", str(zmq_port)),
        *("--fps", str(FPS), "--inference_latency", "0"),
    )
    child.wait_for(r"\[SERVER\] ready", 120)
    yield f"127.0.0.1:{port}"
    assert child.stop() == 0, child.text


def run(address: str, act: Path, **more: Any) -> tuple[Any, list[np.ndarray]]:
    """A run, and what the arm was told in each step of it."""
    config = SimClientConfig(
        policy_type="act",
        pretrained_name_or_path=str(act),
        server_address=address,
        actions_per_chunk=checkpoints.ROWS,
        aggregate_fn_name="latest_only",
        connect_timeout=60.0,
        **{"env": ENV, "n_episodes": 1, "answer_timeout": 60.0} | more,
    )
    client = SimClient(config)
    told: list[np.ndarray] = []
    try:
        assert client.start()
        assert client._body is not None
        env: Any = client._body._env
        step = env.step
        env.step = lambda action: (told.append(np.array(action)), step(action))[1]
        report = client.control_loop()
    finally:
        client.stop()
    return report, told


def test_both_servers_bring_about_the_same_episode(stock: str, ours: str, act: Path) -> None:
    report, there = run(stock, act, lockstep=True)
    again, here = run(ours, act, lockstep=True)
    assert len(there) == len(here) == 20
    assert report.episodes[0].held == again.episodes[0].held == {}
    # Over gRPC to LeRobot's server and back as pickles, to ours without: the same to rounding,
    # and to what rounding makes of 20 steps of physics.
    assert np.array(there[:10]) == pytest.approx(np.array(here[:10]), abs=1e-3)
    assert np.ptp(np.array(there), axis=0).max() > 0.2, "the arm was moved"
    assert report.episodes[0].reward == pytest.approx(again.episodes[0].reward, abs=1e-3)


@pytest.mark.parametrize("server", ["stock", "ours"])
def test_several_episodes_on_the_wall_clock(server: str, stock: str, ours: str, act: Path) -> None:
    """LeRobot's server keeps one session, whose steps go on; ours begins one for each episode."""
    address = {"stock": stock, "ours": ours}[server]
    report, told = run(address, act, n_episodes=3)
    assert [one.steps for one in report.episodes] == [20, 20, 20]
    assert len(told) == 60
    for one in report.episodes:
        assert one.chunks >= 1, "observations after the first episode are answered too"
        assert one.empty < 1.0 and one.sessions_lost == 0
        assert one.success is False
