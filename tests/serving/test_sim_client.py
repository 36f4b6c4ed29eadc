"""The simulation client: its parts, and the program against a real server."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="pip install '.[gym]'")

from common.program import OptionError, ProgramError
from senders.drivers import DriverError
from serving.sim_client import SimClient, SimClientConfig, main
from tests.serving.sim_envs import LINE
from tests.support import ROOT, Child, free_ports, wait_until

Program = Callable[..., Child]
ENV = ("--env.type", LINE, "--env.module", "tests.serving.sim_envs")


class Server:
    """`serving/policy_server.py`, and where it is."""

    def __init__(self) -> None:
        port, zmq_port = free_ports(2)
        self.grpc, self.zmq = f"127.0.0.1:{port}", f"tcp://127.0.0.1:{zmq_port}"
        self.child = Child(
            *("serving/policy_server.py", "--port", str(port), "--zmq_port", str(zmq_port)),
            *("--inference_latency", "0"),
        )
        self.child.wait_for(r"\[SERVER\] ready", 120)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    assert one.child.stop() == 0, one.child.text


def options(address: str, path: str, *more: str) -> list[str]:
    return [
        *("--server_address", address, "--policy_type", "builtin"),
        *("--pretrained_name_or_path", path, "--aggregate_fn_name", "latest_only", *more),
    ]


def log_of(path: Path) -> dict[int, np.ndarray]:
    """What each episode, by its seed, was told to do (N, 2)."""
    episodes: dict[int, list[list[float]]] = {}
    for line in path.read_text().splitlines():
        told = json.loads(line)
        if "seed" in told:
            rows = episodes[told["seed"]] = []
        else:
            rows.append(told["action"])
    return {seed: np.array(rows) for seed, rows in episodes.items()}


def sway(
    home: float, steps: np.ndarray, amplitude: float = 2.0, period: float = 30.0
) -> np.ndarray:
    """What the builtin policy has slider 0 do at these steps."""
    return home + amplitude * np.sin(2 * np.pi * steps / period)


SWAY = "sway?period_steps=30&rows=8"


def test_a_run_on_the_wall_clock(program: Program, server: Server, tmp_path: Path) -> None:
    log, summary = tmp_path / "log", tmp_path / "told.json"
    child = program(
        "serving/sim_client.py", *ENV, f"--env.log={log}", "--n_episodes=2", "--seed=4",
        "--env.state_names=[x, y]", "--env.action_names=[x, y]", "--env.idle=hold",
        *options(server.grpc, f"{SWAY}&inference_s=0.1", "--actions_per_chunk=8"),
        f"--summary={summary}", f"--video={tmp_path / 'film'}",
        f"--queue_plot={tmp_path / 'queue.png'}",
    )  # fmt: skip
    assert child.end(120) == 0, child.text
    told = json.loads(summary.read_text())
    assert (told["n_episodes"], told["successes"], told["success_rate"]) == (2, 1, 0.5)
    assert told["mode"] == "wall" and told["fps"] == 20
    assert [one["seed"] for one in told["episodes"]] == [4, 5]
    assert [one["success"] for one in told["episodes"]] == [True, False]
    assert [one["reward"] for one in told["episodes"]] == [10.0, 10.0]
    assert [one["task"] for one in told["episodes"]] == ["slide", "slide"]
    executed = log_of(log)
    for one in told["episodes"]:
        rows, home = executed[one["seed"]], float(one["seed"])
        assert len(rows) == one["steps"] == 20
        # 0.1 s of inference at 20 Hz: two steps at least are made before there is any action.
        first = one["first_action_step"]
        assert first >= 2 and one["held"]["no_action"] >= first
        assert one["empty_share"] == pytest.approx(sum(one["held"].values()) / 20)
        assert (rows[:first, 0] == home).all(), "it stands still until then"
        # From then on each value is one that the policy planned for some step of this episode.
        planned = sway(home, np.arange(200))
        assert all(np.abs(planned - value).min() < 1e-4 for value in rows[first:, 0])
        assert np.ptp(rows[first:, 0]) > 0.5
        assert one["chunks"] >= 1 and one["round_trip_ms"] > 100
        assert one["control_hz"] <= 22  # 20 steps have 19 intervals
        assert Path(one["video"]).stat().st_size > 1000
    assert (tmp_path / "queue.png").stat().st_size > 10_000
    assert "success rate   50.0% (1 of 2; 95 % interval 9.5% to 90.5%)" in child.text
    assert "queue empty" in child.text


def test_in_lockstep_every_action_is_the_one_for_what_was_seen(
    program: Program, server: Server, tmp_path: Path
) -> None:
    """Row k of each chunk is executed k steps after what it was predicted from: no latency."""
    log, summary = tmp_path / "log", tmp_path / "told.json"
    child = program(
        "serving/sim_client.py", *ENV, f"--env.log={log}", "--n_episodes=3", "--lockstep",
        *options(server.zmq, f"{SWAY}&inference_s=0.05", "--actions_per_chunk=8"),
        f"--summary={summary}",
    )  # fmt: skip
    assert child.end(120) == 0, child.text
    told = json.loads(summary.read_text())
    assert told["mode"] == "lockstep" and told["empty_share"] == 0.0
    for seed, rows in log_of(log).items():
        assert rows[:, 0] == pytest.approx(sway(seed, np.arange(20)), abs=1e-4)
    for one in told["episodes"]:
        assert (one["chunks"], one["observations"], one["first_action_step"]) == (3, 3, 0)
        assert one["round_trip_ms"] >= 50
    assert "hold" not in child.text


def test_lockstep_with_chunks_of_one(server: Server, tmp_path: Path) -> None:
    config = SimClientConfig(
        policy_type="builtin",
        pretrained_name_or_path="sway?period_steps=30&rows=1",
        server_address=server.grpc,
        actions_per_chunk=1,
        n_episodes=1,
        lockstep=True,
        env={"type": LINE, "log": str(tmp_path / "log"), "steps": 6},
    )
    report = run(config)
    assert report.episodes[0].chunks == 6
    assert log_of(tmp_path / "log")[0][:, 0] == pytest.approx(sway(0, np.arange(6)), abs=1e-4)


def run(config: SimClientConfig) -> Any:
    """As users of the Python interface do."""
    client = SimClient(config)
    try:
        assert client.start()
        receiver = threading.Thread(target=client.receive_actions, daemon=True)
        receiver.start()
        report = client.control_loop(task="told here")
    finally:
        client.stop()
    receiver.join(10)
    assert not receiver.is_alive()
    return report


@pytest.mark.parametrize("sessions", ["episode", "run"])
def test_the_python_interface(server: Server, tmp_path: Path, sessions: Any) -> None:
    config = SimClientConfig(
        policy_type="builtin",
        pretrained_name_or_path=f"{SWAY}&inference_s=0.02",
        server_address=server.zmq,
        actions_per_chunk=8,
        aggregate_fn_name="latest_only",
        n_episodes=2,
        sessions=sessions,
        clock="stretched",
        env={"type": LINE, "log": str(tmp_path / "log"), "steps": 30, "fps": 50},
    )
    report = run(config)
    assert [one.task for one in report.episodes] == ["slide", "slide"]
    assert report.fps == 50 and report.mode == "stretched"
    executed = log_of(tmp_path / "log")
    for episode in report.episodes:
        assert episode.chunks >= 2, "later observations are answered too"
        assert episode.empty < 0.9
    # One session goes on: the policy sways about where the first episode began.
    home = 0.0 if sessions == "run" else 1.0
    moved = executed[1][report.episodes[1].first_action_step :, 0]
    planned = sway(home, np.arange(500))
    others = [float(value) for value in moved if np.abs(planned - value).min() >= 1e-4]
    assert not others, (others, moved.tolist())


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--env.type", "pusht-v7", *ENV[2:]], 2, "no environment 'pusht-v7'"),
        (["--env.type", LINE, "--env.module", "no.such"], 2, "no is not installed"),
        ([*ENV, "--env.state_names=[x]"], 2, "2 different names are needed"),
        ([*ENV, "--env.idle=hold"], 2, "actions that are positions"),
        ([*ENV, "--env.idle=[1]"], 2, "must have 2 values"),
        ([*ENV, "--env.nonsense=1"], 2, "cannot be made"),
        ([*ENV, "--env.features_map={agent_pos: observation.nose}"], 2, "observation.nose"),
        ([*ENV, "--env.features_map={nose: observation.state}"], 2, "has no 'nose'"),
        ([*ENV, "--lockstep", "--clock=stretched"], 2, "leave out --clock"),
        ([*ENV, "--n_episodes=0"], 2, "n_episodes must be"),
        ([*ENV, "--low_pass_hz=15"], 2, "below 10, half of --fps"),
        ([], 2, "no environment is given"),
        ([*ENV, "--env.breaks_at=3", "--lockstep"], 1, "a gear is broken"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    server: Server, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    assert main([*more, *options(server.grpc, "hold")]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0], errors


Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize("mode", [[], ["--lockstep", "--answer_timeout=2"]])
def test_a_policy_that_fails_ends_the_run(server: Server, capsys: Capsys, mode: list[str]) -> None:
    assert main([*ENV, *options(server.grpc, "raise", *mode)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "asked to fail" in line


def test_other_actions_than_the_environments_end_the_run(server: Server, capsys: Capsys) -> None:
    env = ["--env.type=gym", "--env.task=Pendulum-v1"]
    assert main([*env, *options(server.grpc, "hold")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "actions are not the environment's: 3 (no names), the environment takes 1" in line


def test_no_server(capsys: Capsys) -> None:
    (port,) = free_ports(1)
    assert main([*ENV, *options(f"127.0.0.1:{port}", "hold")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no policy server" in line and line.endswith("no episode was run")


@pytest.mark.parametrize("mode", [["--lockstep"], []])
def test_a_lost_server_ends_the_run_and_what_was_done_is_shown(
    program: Program, mode: list[str]
) -> None:
    own = Server()
    child = program(
        "serving/sim_client.py", *ENV, "--n_episodes=1000", "--reconnect_timeout=1",
        *options(own.zmq, "hold", *mode),
    )  # fmt: skip
    child.wait_for("episode 2/1000")
    own.child.kill()
    assert child.end(60) == 1, child.text
    assert "did not come back" in child.text and "success rate" in child.text


def test_ctrl_c_shows_the_episodes_that_were_finished(program: Program, server: Server) -> None:
    child = program(
        "serving/sim_client.py", *ENV, "--n_episodes=1000", *options(server.grpc, "hold")
    )
    child.wait_for("episode 1/1000")
    assert child.stop(signal.SIGINT) == 0, child.text
    assert "success rate" in child.text and "Traceback" not in child.text


def test_what_is_unsound_is_a_hold(server: Server, tmp_path: Path) -> None:
    config = SimClientConfig(
        policy_type="builtin",
        pretrained_name_or_path=SWAY,
        server_address=server.grpc,
        n_episodes=1,
        lockstep=True,
        env={"type": LINE, "log": str(tmp_path / "log"), "blind_at": 5, "idle": "last"},
    )
    episode = run(config).episodes[0]
    assert episode.held == {"body": 1} and episode.steps == 20
    rows = log_of(tmp_path / "log")[0]
    assert (rows[5] == rows[4]).all(), "the last action once more"
    assert np.isfinite(rows).all()


def test_actions_stay_within_the_action_space(server: Server, tmp_path: Path) -> None:
    config = SimClientConfig(
        policy_type="builtin",
        pretrained_name_or_path="sway?period_steps=30&rows=8&amplitude=50",
        server_address=server.grpc,
        n_episodes=1,
        lockstep=True,
        env={"type": LINE, "log": str(tmp_path / "log"), "spread": 10.0},
    )
    run(config)
    rows = log_of(tmp_path / "log")[0][:, 0]
    assert rows == pytest.approx(np.clip(sway(0, np.arange(20), 50.0), -10, 10), abs=1e-4)
    assert np.abs(rows).max() == 10.0


@pytest.mark.parametrize("name", ["pusht", "aloha", "metaworld", "libero"])
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import sys

    from serving import environments

    package = {"pusht": "gym_pusht", "aloha": "gym_aloha"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"serving.environments.{name}", raising=False)
    with pytest.raises(OptionError, match=rf"{package}.* pip install '\.\[{name}\]'"):
        environments.make({"type": name})


@pytest.mark.timeout(600)
def test_the_rig_with_the_dual_rate_policy(
    rig_can_be_seen: None, server: Server, tiny_checkpoint: Path
) -> None:
    """Pictures of five views, joints and the sensor's window reach the policy, joints come back."""
    pytest.importorskip("torch", reason="pip install '.[receiver]'")
    config = SimClientConfig(
        policy_type="qwen_vla",
        pretrained_name_or_path=str(tiny_checkpoint),
        server_address=server.zmq,
        actions_per_chunk=2,
        n_episodes=1,
        lockstep=True,
        connect_timeout=60.0,
        answer_timeout=60.0,
        env={"type": "insertion", "width": 64, "height": 48, "episode_s": 0.4},
    )
    (episode,) = run(config).episodes
    assert (episode.steps, episode.held, episode.success) == (4, {}, False)
    assert episode.chunks == 2 and math.isfinite(episode.reward)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trained_policy_succeeds_on_the_rig(
    rig_can_be_seen: None, program: Program, server: Server, tmp_path: Path
) -> None:
    """The policy that is shipped, through both programs, with the command that the docs have."""
    pytest.importorskip("torch", reason="pip install '.[receiver]'")
    checkpoint, report = ROOT / "assets" / "insertion-policy", tmp_path / "report.json"
    client = program(
        *("serving/sim_client.py", "--env.type", "dualrate/Insertion-v0", "--lockstep"),
        *("--policy_type", "qwen_vla", "--pretrained_name_or_path", str(checkpoint)),
        *("--server_address", server.grpc, "--n_episodes", "3", "--seed", "900000"),
        *("--connect_timeout", "120", "--answer_timeout", "120", "--summary", str(report)),
    )
    assert client.process.wait(800) == 0, client.text
    told = json.loads(report.read_text())
    assert told["n_episodes"] == 3 and told["held_steps"] == {}
    # Not all of them: another checkpoint may miss one that this one does.
    assert told["successes"] >= 1, client.text
    assert "success rate" in client.text


@pytest.fixture(scope="session")
def rig_can_be_seen() -> None:
    from sim.model import build_model
    from sim.rendering import RigRenderer

    try:
        RigRenderer(build_model(), 32, 32).close()
    except DriverError as error:
        pytest.skip(str(error))


def test_stop_from_another_thread_ends_a_wait(server: Server) -> None:
    """A policy that never answers: lock-step waits, and a stop is heard."""
    config = SimClientConfig(
        policy_type="builtin",
        pretrained_name_or_path="hang?hang_s=20",
        server_address=server.zmq,
        n_episodes=1,
        lockstep=True,
        env={"type": LINE},
    )
    client = SimClient(config)
    assert client.start()
    reports: list[Any] = []
    worker = threading.Thread(target=lambda: reports.append(client.control_loop()), daemon=True)
    worker.start()
    wait_until(lambda: client._connection and client._connection._asked_at, "the question")
    client.stop()
    worker.join(20)
    assert reports and reports[0].episodes == ()


def test_starting_comes_first() -> None:
    client = SimClient(SimClientConfig(policy_type="builtin", env={"type": LINE}))
    with pytest.raises(ProgramError, match="start"):
        client.control_loop()
    client.stop()
