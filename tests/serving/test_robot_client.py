"""The robot client: its command line, what it says of itself, and the program against a server."""

from __future__ import annotations

import csv
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.program import OptionError, parse
from common.typed import listen_for_leave
from serving.client_arguments import arguments
from serving.client_options import ClientOptions
from serving.client_status import ClientStatus
from serving.control_values import LoopOptions
from serving.messages import Instructions
from serving.queue_plot import QueueHistory
from serving.robot_client import _opened
from serving.supervisor import Connection, ConnectionOptions
from tests.serving.test_control_loop import FPS, World
from tests.serving.test_supervisor import FakeLink
from tests.support import Child, free_ports

Program = Callable[..., Child]
SIMULATED = ("--robot.type", "simulated")

LEROBOTS = [
    "--server_address=10.0.0.5:8080",
    "--robot.type=so101_follower",
    "--robot.port=/dev/ttyACM0",
    "--robot.id=my_arm",
    "--robot.cameras={camera1: {type: opencv, index_or_path: /dev/video2, width: 640, "
    "height: 480, fps: 30, fourcc: MJPG}}",
    "--task=Pick the cube to place",
    "--policy_type=smolvla",
    "--pretrained_name_or_path=user/model",
    "--policy_device=cuda",
    "--client_device=cpu",
    "--actions_per_chunk=50",
    "--chunk_size_threshold=0.5",
    "--aggregate_fn_name=weighted_average",
    "--fps=30",
    "--debug_visualize_queue_size=True",
]


def options_of(*argv: str) -> tuple[dict, ClientOptions]:
    robot, rest = arguments(argv)
    return robot, parse(ClientOptions, rest)


@pytest.mark.parametrize("style", ["equals", "spaces", "hyphens"])
def test_lerobots_command_line_is_taken_as_it_is(style: str) -> None:
    argv = list(LEROBOTS)
    if style != "equals":
        argv = [part for word in argv for part in word.split("=", 1)]
    if style == "hyphens":
        argv = [
            w if w.startswith("--robot") or w[:2] != "--" else w.replace("_", "-") for w in argv
        ]
    robot, options = options_of(*argv)
    assert robot["type"] == "so101_follower"
    assert robot["cameras"]["camera1"]["index_or_path"] == "/dev/video2"
    assert options.task == "Pick the cube to place"
    assert (options.policy_type, options.pretrained_name_or_path) == ("smolvla", "user/model")
    assert options.debug_visualize_queue_size is True
    assert options.plot_file() == Path("action_queue.png")
    assert options.address() == "10.0.0.5:8080"
    assert not options.uses_zmq
    assert options.loop().aggregation.name == "weighted_average"
    asked = options.instructions(("a.pos",), {"front": (4, 6, 3)})
    assert asked == Instructions(
        "smolvla", "user/model", "cuda", 50, ("a.pos",), {"front": (4, 6, 3)}, {}, 30.0
    )


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--tls"], True),
        (["--tls", "True"], True),
        (["--tls=true"], True),
        (["--tls", "false"], False),
        (["--tls=False"], False),
        ([], False),
    ],
)
def test_switches_are_written_in_any_way(words: list[str], value: bool) -> None:
    _, options = options_of("--policy_type=act", *words, "--fps=20")
    assert (options.tls, options.fps) == (value, 20.0)


def test_a_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(
        "policy_type: smolvla\nfps: 20\nactions-per-chunk: 16\ndebug_visualize_queue_size: true\n"
        "low_pass_except: [gripper, vacuum]\nrename_map: {front: camera1}\n"
        "robot: {type: so101_follower, port: /dev/ttyACM0, cameras: {front: {type: opencv}}}\n"
    )
    robot, options = options_of("--config", str(file), "--fps=50", "--robot.port=/dev/ttyACM1")
    assert robot["port"] == "/dev/ttyACM1"
    assert robot["cameras"] == {"front": {"type": "opencv"}}
    assert (options.fps, options.actions_per_chunk) == (50.0, 16)
    assert options.low_pass_except == ("gripper", "vacuum")
    assert options.debug_visualize_queue_size
    assert options.instructions((), {}).rename == {"front": "camera1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server_address=robot"], "HOST:PORT"),
        (["--server_address=robot:70000"], "HOST:PORT"),
        (["--server_address=tcp://a:1", "--transport=grpc"], "ZeroMQ"),
        (["--chunk_size_threshold=1.5"], "chunk_size_threshold must be from 0 to 1"),
        (["--actions_per_chunk=0"], "actions_per_chunk must be"),
        (["--fps=0"], "--fps must be"),
        (["--fps=nan"], "--fps must be"),
        (["--low_pass_hz=15"], "below 15, half of --fps"),
        (["--aggregate_fn_name=mean"], "weighted_average"),
        (["--rename_map=[1, 2]"], "--rename_map must be names"),
        (["--max_input_age=0"], "--max_input_age must be"),
        (["--tls=maybe"], "maybe"),
        (["--config=/no/such.yaml"], "cannot be read"),
        (["--token_file=/no/such"], "/no/such: cannot be read"),
        (["--server_address=tcp://a:1", "--curve_keys=/no/such"], "/no/such"),
        (["--tls_ca=/no/such"], "--tls_ca"),
        (["--tls_cert=/no/such"], "--tls_cert and --tls_key belong together"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(words: list[str], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        _, options = options_of("--policy_type=act", *words)
        options.link()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "zmq"),
    [
        (["--server_address=tcp://a:9"], True),
        (["--server_address=a:9", "--transport=zmq"], True),
        (["--server_address=a:9"], False),
        (["--server_address=a:9", "--transport=grpc"], False),
    ],
)
def test_the_address_chooses_the_transport(words: list[str], zmq: bool) -> None:
    _, options = options_of("--policy_type=act", *words)
    assert (options.uses_zmq, options.address()) == (zmq, "a:9")


def run_world(ticks: int = 40) -> tuple[World, ClientStatus]:
    world = World(options=LoopOptions(fps=FPS, actions_per_chunk=8), delay=2)
    connection = Connection(FakeLink(), Instructions("x", ""), ConnectionOptions())
    status = ClientStatus(world.loop, connection, FPS, 100.0)
    for _ in range(ticks):
        world.tick()
        status.tick(0)
    status.tick(3)
    return world, status


def test_the_status_says_what_the_contract_asks_for() -> None:
    world, status = run_world()
    assert status.line(101.9) is None, "every two seconds"
    line = status.line(104.0)
    assert line is not None
    assert status.line(105.9) is None
    assert line.startswith("[CLIENT] Status Summary | ")
    queued = len(world.loop.queue)
    for part in (
        f"queue {queued}/8",
        f"last observation {104.0 - world.loop.counters.observed_at:.2f} s ago",  # type: ignore
        f"last chunk {104.0 - world.loop.counters.answered_at:.2f} s ago",  # type: ignore
        "/10 Hz, 3 ticks missed",
        "round trip p50 200.0 ms, p99 200.0 ms",
        "holds: no_action 1× (0.2 s)",
    ):
        assert part in line
    told = status.summary(104.0)
    assert (told["steps"], told["moves"], told["held_s"]) == (40, 38, {"no_action": 0.2})
    assert told["round_trip_ms"] == {"p50": pytest.approx(200.0), "p99": pytest.approx(200.0)}
    assert "38 of 40 steps moved" in status.final(104.0)


def test_the_status_before_anything_came() -> None:
    world = World()
    connection = Connection(FakeLink(), Instructions("x", ""), ConnectionOptions())
    line = ClientStatus(world.loop, connection, FPS, 100.0).line(102.0)
    assert line is not None
    for part in ("connecting", "queue 0/8", "last chunk - ", "p50 -", "holds: none"):
        assert part in line


def test_the_history_of_a_long_run_is_coarse_but_hides_nothing() -> None:
    history = QueueHistory(most=100)
    for tick in range(12_345):
        history.add(tick / 30, 0 if tick == 7001 else 25, tick == 9003)
    assert len(history) <= 100
    points = history._points
    assert min(length for _, length, _ in points) == 0
    assert sum(held for _, _, held in points) == 1
    times = [at for at, _, _ in points]
    assert times == sorted(times)
    assert np.diff(times).max() < 2.1 * np.diff(times).min() + 1e-6
    emptied = next(at for at, length, _ in points if length == 0)
    assert emptied <= 7001 / 30 < emptied + 2 * np.diff(times).max()


@pytest.mark.parametrize("ticks", [0, 1, 40])
def test_the_queue_is_drawn(tmp_path: Path, ticks: int) -> None:
    history = QueueHistory()
    for tick in range(ticks):
        history.add(tick / 30, tick % 9, tick < 3)
    path = tmp_path / "plots" / "queue.png"
    history.plot(path, 8, 0.5)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1320, 480)


def client(program: Program, address: str, *more: str, robot: tuple[str, ...] = SIMULATED) -> Child:
    return program(
        "serving/robot_client.py", "--server_address", address, *robot, "--policy_type", "builtin",
        *more,
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["", "tcp://"])
def test_without_a_server_there_is_one_clear_line_and_code_2(program: Program, scheme: str) -> None:
    (port,) = free_ports(1)
    child = client(program, f"{scheme}127.0.0.1:{port}", "--connect_timeout", "3")
    assert child.end(60) == 2
    errors = [line for line in child.text.splitlines() if line.startswith("robot_client.py: ")]
    assert len(errors) == 1
    assert f"127.0.0.1:{port}" in errors[0]
    assert "the robot was not touched" in errors[0]
    assert "connecting to the robot" not in child.text
    assert "Traceback" not in child.text


def test_a_server_that_takes_connections_and_says_nothing_is_none(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        child = client(program, f"127.0.0.1:{port}", "--connect_timeout", "1")
        assert child.end(60) == 2
    assert "no policy server" in child.text


@pytest.mark.parametrize(
    ("robot", "said"),
    [((), "--robot.type"), (("--robot.type", "so999"), "so999"), (("--robot.type",), "VALUE")],
)
def test_a_robot_that_cannot_be_used_is_one_line(
    program: Program, robot: tuple[str, ...], said: str
) -> None:
    child = client(program, "127.0.0.1:9", robot=robot)
    assert child.end(60) == 2
    assert said in child.text
    assert "Traceback" not in child.text


Addresses = dict[str, str]


def test_a_robot_that_cannot_be_told_to_hold_is_let_go_of() -> None:
    body = World().body
    closed = []

    def hold() -> None:
        raise RuntimeError("a driver's own error")

    body.hold = hold  # type: ignore[method-assign]
    body.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError), _opened(body):
        pass
    assert closed


def server_on(start: Program, ports: list[int]) -> Child:
    child = start("serving/policy_server.py", "--port", str(ports[0]), "--zmq_port", str(ports[1]))
    child.wait_for(r"\[SERVER\] ready")
    return child


def addresses(ports: list[int]) -> Addresses:
    return {"grpc": f"127.0.0.1:{ports[0]}", "zmq": f"tcp://127.0.0.1:{ports[1]}"}


@pytest.fixture(scope="module")
def where() -> Iterator[Addresses]:
    """The addresses, by transport, of a server that the tests share."""
    ports = free_ports(2)
    child = server_on(Child, ports)
    yield addresses(ports)
    child.kill()


def commands(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("transport", ["grpc", "zmq"])
def test_the_program_moves_a_robot_and_leaves_it_safe(
    program: Program, where: Addresses, tmp_path: Path, transport: str
) -> None:
    summary, plot, record = tmp_path / "s.json", tmp_path / "q.png", tmp_path / "moves.csv"
    child = client(
        program, where[transport], "--pretrained_name_or_path", "sway?rows=20",
        "--actions_per_chunk", "20", "--low_pass_hz", "5", "--summary", str(summary),
        "--queue_plot", str(plot), "--task", "sway about", "--robot.record", str(record),
    )  # fmt: skip
    child.wait_for(
        r"\[CLIENT\] Status Summary \| running \| queue \d+/20 .*round trip p50 [\d.]+ ms"
    )
    assert child.stop() == 0, child.text
    assert "Traceback" not in child.text
    assert "the robot holds and is disconnected" in child.text
    told = json.loads(summary.read_text())
    assert told["moves"] > 20
    assert told["chunks"] >= 2
    assert (told["gaps"], told["sessions"]) == (0, 1)
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = commands(record)
    assert rows[-1][1] == "hold", "the last thing that it was told"
    assert sum(row[1] == "move" for row in rows) == told["moves"]


@pytest.mark.parametrize("transport", ["grpc", "zmq"])
def test_a_server_that_is_killed_and_comes_back(
    program: Program, tmp_path: Path, transport: str
) -> None:
    ports = free_ports(2)
    server, where = server_on(program, ports), addresses(ports)
    record, summary = tmp_path / "moves.csv", tmp_path / "s.json"
    child = client(
        program, where[transport], "--pretrained_name_or_path", "sway",
        "--robot.record", str(record), "--summary", str(summary),
    )  # fmt: skip
    child.wait_for(r"\[CLIENT\] moving")
    server.kill()
    child.wait_for(r"\[CLIENT\] the server is lost")
    child.wait_for(r"\[CLIENT\] hold: the server is lost")
    seen = len(child.lines)
    child.wait_for(r"no server yet", after=seen)
    server_on(program, ports)
    child.wait_for(r"connected again", after=seen)
    child.wait_for(r"\[CLIENT\] moving", after=seen)
    assert child.stop() == 0, child.text
    told = json.loads(summary.read_text())
    assert told["sessions"] == 2
    assert told["holds"]["not_connected"] == 1


def test_a_server_that_does_not_come_back_is_given_up(program: Program, tmp_path: Path) -> None:
    ports = free_ports(2)
    server, where = server_on(program, ports), addresses(ports)
    record = tmp_path / "moves.csv"
    child = client(
        program, where["grpc"], "--pretrained_name_or_path", "sway", "--reconnect_timeout", "1.5",
        "--robot.record", str(record),
    )  # fmt: skip
    child.wait_for(r"\[CLIENT\] moving")
    server.kill()
    assert child.end(60) == 1, child.text
    assert "did not come back within 1.5 s (--reconnect_timeout)" in child.text
    assert commands(record)[-1][1] == "hold"


@pytest.mark.parametrize("transport", ["grpc", "zmq"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pretrained_name_or_path", "swaay"), "no builtin policy 'swaay'"),
        (("--pretrained_name_or_path", "no_load"), "the policy server refuses"),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_one_line_and_code_2(
    program: Program, where: Addresses, transport: str, words: tuple[str, ...], said: str
) -> None:
    child = client(program, where[transport], *words)
    assert child.end(60) == 2, child.text
    errors = [line for line in child.text.splitlines() if line.startswith("robot_client.py: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "connecting to the robot" not in child.text


def test_ctrl_c_while_the_policy_loads(program: Program, where: Addresses) -> None:
    for address in where.values():
        child = client(program, address, "--pretrained_name_or_path", "sway?load_s=60")
        child.wait_for("asking")
        assert child.stop() == 0, child.text
        assert "connecting to the robot" not in child.text


def test_a_policy_that_fails_holds_and_says_so(program: Program, where: Addresses) -> None:
    child = client(program, where["grpc"], "--pretrained_name_or_path", "raise")
    child.wait_for(r"hold: the server refuses, and no action is queued: ")
    child.wait_for(r"Status Summary .* on hold: server")
    assert child.stop() == 0, child.text
    assert re.search(r"0 of \d+ steps moved", child.text)


def test_only_the_word_resume_ends_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed, seen = threading.Event(), []

    def typed(_: threading.Event) -> Iterator[bytes]:
        for line in (b"", b"res", b"resume now", b"task resume", b" resume \r"):
            yield line
            seen.append(resumed.is_set())

    monkeypatch.setattr("common.typed.typed_lines", typed)
    listen_for_leave(threading.Event(), resumed)
    assert seen == [False, False, False, False, True]
