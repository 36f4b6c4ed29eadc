"""LeRobot's own server and client beside ours, in every pairing, as processes over real sockets.

The policy is one and the same small ACT: what one pairing computes, every other must.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("scservo_sdk", reason="Feetech's SDK is not installed: make test-lerobot")
pytest.importorskip("grpc", reason="gRPC is not installed: make test-lerobot")

import cv2
import grpc
import zmq

from serving.link import Link
from serving.messages import Chunk, Instructions, Observation, Picture
from serving.policies import lerobot_policy
from serving.served import Request, ServedPolicy
from serving.transports.grpc_link import GrpcLink
from serving.transports.zmq_link import ZmqLink
from tests.lerobot import checkpoints, mockarm
from tests.lerobot.checkpoints import CAMERA, ROWS, SHAPE, instructions, observation
from tests.lerobot.feetech import GOAL, RANGES, Bus
from tests.lerobot.stock import FPS, Speaker, StockServer, rows_of, stock_client
from tests.support import Child, free_ports, wait_until

CLOSE = 1e-5
OUR_CLIENT = (
    "import sys, tests.lerobot.mockarm; from serving.robot_client import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.act(tmp_path_factory.mktemp("act"))


@pytest.fixture(scope="module")
def policy(act: Path) -> ServedPolicy:
    return lerobot_policy.load(instructions("act", act))


@pytest.fixture(scope="module")
def stock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = StockServer(tmp_path_factory.mktemp("stock"))
    yield server.address
    server.close()


class OurServer:
    """`serving/policy_server.py` with both transports."""

    def __init__(self) -> None:
        port, zmq_port = free_ports(2)
        self.address, self.zmq_address = f"127.0.0.1:{port}", f"127.0.0.1:{zmq_port}"
        self.child = Child(
            *("serving/policy_server.py", "--host", "127.0.0.1", "--port", str(port)),
            *("--zmq_port", str(zmq_port), "--fps", str(FPS), "--inference_latency", "0"),
            *("--obs_queue_timeout", "2"),
        )
        self.child.wait_for(r"gRPC on ", 120)


@pytest.fixture(scope="module")
def our_server() -> Iterator[OurServer]:
    server = OurServer()
    yield server
    assert server.child.stop() == 0, server.child.text


# In lock-step: the same observations, chunk by chunk.


Exchange = Callable[[Observation], "tuple[list[int], list[float], np.ndarray]"]


def through_stock(address: str, asked: Instructions) -> tuple[Exchange, Speaker]:
    """LeRobot's client's calls and pickles."""
    speaker = Speaker(address)
    speaker.begin(asked)

    def exchange(seen: Observation) -> tuple[list[int], list[float], np.ndarray]:
        speaker.send(seen)
        return rows_of(speaker.receive())

    return exchange, speaker


def through_ours(link: Link, asked: Instructions) -> tuple[Exchange, Link]:
    """Our client's link."""
    link.begin(asked, 120.0)

    def exchange(seen: Observation) -> tuple[list[int], list[float], np.ndarray]:
        link.send(seen, 30.0)
        chunk = link.receive(30.0)
        assert isinstance(chunk, Chunk)
        return rows_of(chunk)

    return exchange, link


def told(large: bool) -> list[Observation]:
    """Observations as a run would send them; three parts of 2 MiB each where they are large."""
    seen = []
    for number, (step, must_go) in enumerate(
        [(0, True), (0, True), (4, False), (11, False), (11, True), (30, False)]
    ):
        one = replace(observation(number, step, task=f"task {number}"), must_go=must_go)
        if large:
            pixels = checkpoints.picture(number).repeat(9, axis=0).repeat(9, axis=1)
            one = replace(one, pictures={CAMERA: Picture(np.ascontiguousarray(pixels))})
        seen.append(one)
    return seen[:3] if large else seen


@pytest.mark.parametrize("large", [False, True])
def test_every_pairing_gives_the_chunks_of_stock_with_stock(
    act: Path, stock_server: str, our_server: OurServer, large: bool
) -> None:
    asked = instructions("act", act, actions_per_chunk=15, fps=float(FPS))
    if large:
        asked = replace(asked, cameras={CAMERA: (9 * SHAPE[0], 9 * SHAPE[1], 3)})
    pairings: dict[str, Callable[[], tuple[Exchange, Any]]] = {
        "stock with stock": lambda: through_stock(stock_server, asked),
        "stock with ours": lambda: through_stock(our_server.address, asked),
        "ours with stock": lambda: through_ours(GrpcLink(stock_server), asked),
        "ours with ours, gRPC": lambda: through_ours(GrpcLink(our_server.address), asked),
        "ours with ours, ZeroMQ": lambda: through_ours(ZmqLink(our_server.zmq_address), asked),
    }
    answers = {}
    for name, begin in pairings.items():
        exchange, ends = begin()
        try:
            answers[name] = [exchange(seen) for seen in told(large)]
        finally:
            ends.close()
    reference = answers.pop("stock with stock")
    assert np.abs(reference[0][2] - reference[1][2]).max() > 0.1, "all chunks are alike"
    for name, chunks in answers.items():
        for seen, expected, given in zip(told(large), reference, chunks, strict=True):
            where = f"{name}, step {seen.timestep}"
            assert given[0] == expected[0] == list(range(seen.timestep, seen.timestep + 15)), where
            np.testing.assert_allclose(given[1], expected[1], rtol=0, atol=1e-6, err_msg=where)
            np.testing.assert_allclose(given[2], expected[2], rtol=0, atol=CLOSE, err_msg=where)


def test_two_stock_clients_at_once_have_a_session_each(
    act: Path, our_server: OurServer, policy: ServedPolicy
) -> None:
    """LeRobot's own server would reset the first when the second says Ready."""
    asked = instructions("act", act)
    (one, first), (two, second) = (through_stock(our_server.address, asked) for _ in range(2))
    try:
        first.send(observation(1, 7))
        second.send(observation(2, 9))
        answers = rows_of(first.receive()), rows_of(second.receive())
        for number, (steps, times, actions) in zip((1, 2), answers, strict=True):
            assert steps[0] == {1: 7, 2: 9}[number] and times[0] == 100.0 + number
            np.testing.assert_allclose(
                actions, chunks_of(policy, asked, [observation(number)])[0], rtol=0, atol=1e-4
            )
        assert one(observation(3, 20))[0][0] == 20 and two(observation(3, 21))[0][0] == 21
    finally:
        first.close()
        second.close()


def test_a_stock_client_is_told_what_is_wrong(act: Path, our_server: OurServer) -> None:
    good = instructions("act", act)
    for wrong, status, said in [
        (replace(good, path="/none/such"), grpc.StatusCode.NOT_FOUND, "/none/such"),
        (replace(good, policy_type="atc"), grpc.StatusCode.INVALID_ARGUMENT, "'atc'"),
        (replace(good, cameras={"top": SHAPE}), grpc.StatusCode.INVALID_ARGUMENT, "images.top"),
    ]:
        speaker = Speaker(our_server.address)
        with pytest.raises(grpc.RpcError) as caught:
            speaker.begin(wrong)
        speaker.close()
        assert caught.value.code() == status and said in caught.value.details()


# Free running: the programs themselves, with a robot that writes down what it does.


def chunks_of(
    policy: ServedPolicy, asked: Instructions, seen: list[Observation]
) -> list[np.ndarray]:
    """What the policy gives for each observation."""
    found: list[np.ndarray] = []
    memory = policy.admit(asked)
    for start in range(0, len(seen), policy.most_batched):
        some = [Request(one, memory) for one in seen[start : start + policy.most_batched]]
        for result in policy.predict(some):
            assert not isinstance(result, Exception), result
            assert result.actions is not None
            found.append(result.actions)
    return found


def seen_by_mock(number: int) -> Observation:
    state = np.array(list(mockarm.joints(number).values()), np.float32)
    return Observation(0, 0.0, True, state, {CAMERA: Picture(mockarm.picture(number))}, "pick")


def happened(log: Path) -> list[dict[str, Any]]:
    """Whole lines only: the robot may be writing."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def check_executed(events: list[dict[str, Any]], policy: ServedPolicy, act: Path) -> int:
    """Every action is a row of the policy's chunk for an observation made before it, in order.

    Or the state as it was just read: our client's way to hold. Returns how many were the policy's.
    """
    count = 1 + max(event.get("observation", -1) for event in events)
    asked = instructions("act", act, actions_per_chunk=ROWS)
    chunks = np.stack(chunks_of(policy, asked, [seen_by_mock(n) for n in range(count)]))
    now, matched = -1, []
    for event in events:
        now = event.get("observation", now)
        if "action" not in event:
            continue
        action = np.array(event["action"])
        if now >= 0 and np.array_equal(action, list(mockarm.joints(now).values())):
            continue
        far = np.abs(chunks[: now + 1] - action).max(axis=2)
        number, row = np.unravel_index(np.argmin(far), far.shape)
        assert far[number, row] < 1e-4, f"{action} is no action of the policy's"
        matched.append((int(number), int(row)))
    for before, after in pairwise(matched):
        assert after[0] >= before[0], "an older chunk came back"
        assert after[0] > before[0] or after[1] == before[1] + 1, f"{before} then {after}"
    assert len({number for number, _ in matched}) >= 4, "too few chunks to say anything"
    return len(matched)


def run_until(child: Child, enough: Callable[[], bool], what: str, ends: bool = True) -> int | None:
    """Let a client run until that is so, then Ctrl+C; its exit code where it must end by that."""

    def look() -> bool:
        assert child.process.poll() is None, "the client ended"
        return enough()

    try:
        wait_until(look, what, 120)
        child.process.send_signal(signal.SIGINT)
        return child.end(30) if ends else None
    except AssertionError as error:
        raise AssertionError(f"{error}; the client said:\n{child.text[-3000:]}") from None
    finally:
        if child.process.poll() is None:
            child.kill()


def executed(log: Path, count: int) -> Callable[[], bool]:
    return lambda: sum("action" in event for event in happened(log)) >= count


@pytest.mark.parametrize("server", ["stock", "ours"])
def test_the_stock_client_runs_a_robot(
    server: str,
    act: Path,
    policy: ServedPolicy,
    stock_server: str,
    our_server: OurServer,
    tmp_path: Path,
) -> None:
    address = stock_server if server == "stock" else our_server.address
    log = tmp_path / "log"
    robot = ("--robot.type=mockarm", f"--robot.log={log}")
    child = stock_client(tmp_path, address, "act", act, *robot)
    run_until(child, executed(log, 80), "80 actions", ends=False)
    events = happened(log)
    assert check_executed(events, policy, act) >= 80


@pytest.mark.parametrize("server", ["stock", "ours, gRPC", "ours, ZeroMQ"])
def test_our_client_runs_a_robot(
    server: str,
    act: Path,
    policy: ServedPolicy,
    stock_server: str,
    our_server: OurServer,
    tmp_path: Path,
) -> None:
    address = {
        "stock": stock_server,
        "ours, gRPC": our_server.address,
        "ours, ZeroMQ": f"tcp://{our_server.zmq_address}",
    }[server]
    log = tmp_path / "log"
    child = our_client(
        tmp_path, address, act, "--robot.type=mockarm", f"--robot.log={log}",
        # A robot without mass: so that nothing is changed on the way to it.
        "--robot.joint_min=-1000", "--robot.joint_max=1000", "--robot.joint_speed=1e6",
        "--robot.max_step=1000", "--robot.speed_scale=1",
    )  # fmt: skip
    assert run_until(child, executed(log, 90), "90 actions") == 0, child.text
    events = happened(log)
    assert check_executed(events, policy, act) >= 80
    assert events[-1] == {"connected": False}


def our_client(folder: Path, address: str, path: Path, *robot: str) -> Child:
    """`serving/robot_client.py`, which knows the mock robot."""
    return Child(
        *("-c", OUR_CLIENT, *robot, "--server_address", address, "--policy_type", "act"),
        *("--pretrained_name_or_path", str(path), "--actions_per_chunk", str(ROWS)),
        *("--chunk_size_threshold", "0.5", "--aggregate_fn_name", "latest_only"),
        *("--fps", str(FPS), "--task", "pick"),
        cwd=folder,
    )


# An SO-101: LeRobot's driver and Feetech's SDK over servos that speak their bytes.


def coded_picture() -> bytes:
    return cv2.imencode(".jpg", mockarm.picture(0))[1].tobytes()


class Pictures:
    """What publishes one picture, again and again, for LeRobot's `zmq` camera."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self._message = json.dumps({"images": {CAMERA: base64.b64encode(coded_picture()).decode()}})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    @property
    def option(self) -> str:
        return (
            f"--robot.cameras={{{CAMERA}: {{type: zmq, server_address: 127.0.0.1, "
            f"port: {self.port}, camera_name: {CAMERA}, width: {SHAPE[1]}, height: {SHAPE[0]}, "
            "fps: 30}}"
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _publish(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            socket.set(zmq.LINGER, 0)
            socket.bind(f"tcp://127.0.0.1:{self.port}")
            while not self._stop.wait(0.03):
                socket.send_string(self._message)


class Arm:
    """The servos, the camera, and what LeRobot needs to be told to find them."""

    def __init__(self, folder: Path) -> None:
        self.bus, self.pictures = Bus(), Pictures()
        self.bus.calibrate(folder)
        for servo in self.bus.servos.values():
            # LeRobot switches torque on with whatever target a servo has.
            servo.put(GOAL, round(servo.position))
        self.robot = (
            *("--robot.type=so101_follower", f"--robot.port={self.bus.path}", "--robot.id=arm"),
            *(f"--robot.calibration_dir={folder}", self.pictures.option),
        )
        self.stood = [*(self.bus.degrees(n) for n in range(1, 6)), self.bus.percent()]

    def close(self) -> None:
        self.bus.close()
        self.pictures.close()

    def targets(self) -> np.ndarray:
        """Targets (N, 6) that were written to all servos at once, as LeRobot's units."""
        written = [item for item in list(self.bus.written) if item[1] == GOAL]
        rows, row = [], {}
        for number, _, data in written:
            row[number] = int.from_bytes(data[:2], "little")
            if number == 6 and len(row) == 6:
                rows.append([_unit(n, row[n]) for n in range(1, 7)])
                row = {}
        return np.array(rows).reshape(-1, 6)


def _unit(number: int, ticks: int) -> float:
    low, high = RANGES[number - 1]
    if number == 6:
        return (ticks - low) / (high - low) * 100
    return (ticks - (low + high) / 2) * 360 / 4095


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    made = Arm(tmp_path)
    yield made
    made.close()


def constant_chunk(folder: Path) -> np.ndarray:
    """What a policy that does not look at the state gives for the one picture."""
    given = instructions("act", folder)
    # LeRobot's camera gives what OpenCV decodes, in OpenCV's order of colours.
    pixels = cv2.imdecode(np.frombuffer(coded_picture(), np.uint8), cv2.IMREAD_COLOR)
    seen = replace(observation(0), pictures={CAMERA: Picture(np.asarray(pixels, np.uint8))})
    return chunks_of(lerobot_policy.load(given), given, [seen])[0]


@pytest.mark.parametrize("client", ["stock", "ours"])
def test_an_so101_goes_where_the_policy_says(
    client: str, arm: Arm, our_server: OurServer, tmp_path: Path
) -> None:
    folder = checkpoints.act(tmp_path / "policy", spread=0.4, around=arm.stood, blind_to_state=True)
    rows = constant_chunk(folder)
    assert np.abs(np.diff(rows, axis=0)).max() > 0.2, "a policy that stands still proves nothing"
    start = stock_client if client == "stock" else our_client
    given = ("act", folder) if client == "stock" else (folder,)
    child = start(tmp_path, our_server.address, *given, *arm.robot)
    ends = client == "ours"  # LeRobot's sometimes hangs in its own end
    code = run_until(child, lambda: len(arm.targets()) >= 100, "100 targets", ends)
    if client == "ours":
        assert code == 0, child.text
        assert arm.bus.torque == [1] * 6, "the arm would drop"
    targets = arm.targets()
    tick = np.array([360 / 4095] * 5 + [100 / 1500])
    far = (np.abs(targets[:, None] - rows[None]) / tick).max(axis=2)
    of_policy = far.min(axis=1) <= 1.01
    # Ours holds before the first chunk and at the end: where the arm stands, not where it is told.
    assert of_policy.sum() >= 80, np.sort(far.min(axis=1))
    assert client == "ours" or of_policy[1:].all(), targets[~of_policy]
    assert np.abs(np.diff(targets[of_policy], axis=0)).max() > 0.2, "the arm was told to move"


def test_an_so101_stays_within_its_limits_whatever_the_policy_says(
    arm: Arm, our_server: OurServer, tmp_path: Path
) -> None:
    """Targets far beyond the joints' ranges, and far apart."""
    folder = checkpoints.act(
        tmp_path / "policy", spread=300.0, around=arm.stood, blind_to_state=True
    )
    rows = constant_chunk(folder)
    low = np.array([_unit(n, RANGES[n - 1][0]) for n in range(1, 7)])
    high = np.array([_unit(n, RANGES[n - 1][1]) for n in range(1, 7)])
    assert ((rows < low) | (rows > high)).any() and np.abs(np.diff(rows, axis=0)).max() > 50
    child = our_client(tmp_path, our_server.address, folder, *arm.robot)
    code = run_until(child, lambda: len(arm.targets()) >= 100, "100 targets")
    assert code == 0, child.text
    targets, tick = arm.targets(), np.array([360 / 4095] * 5 + [100 / 1500])
    outside = (targets < low - tick) | (targets > high + tick)
    wrong = np.flatnonzero(outside.any(axis=1))
    assert not len(wrong), f"rows {wrong}: {targets[wrong].tolist()}"
    assert (np.abs(np.diff(targets, axis=0)) <= 2.0 + 2 * tick).all(), "the furthest step is 2"
    assert np.abs(targets[-1] - targets[0]).max() > 2.0, "the arm moved"


# A hostile client.


class _Evil:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def test_a_pickle_that_runs_a_command_runs_on_the_stock_server_alone(
    act: Path, stock_server: str, our_server: OurServer, tmp_path: Path
) -> None:
    """CVE-2026-25874: the same bytes to both, as an observation and as instructions."""
    from lerobot.transport import services_pb2

    asked = instructions("act", act)
    for server, address in (("stock", stock_server), ("ours", our_server.address)):
        exchange, speaker = through_stock(address, asked)
        for way in ("observation", "instructions"):
            touched = tmp_path / f"{server} {way}"
            data = pickle.dumps(_Evil(f"touch '{touched}'"))
            with pytest.raises(grpc.RpcError) as caught:
                if way == "observation":
                    speaker.send_bytes(data)
                else:
                    speaker.stub.SendPolicyInstructions(
                        services_pb2.PolicySetup(data=data), timeout=60
                    )
            if server == "stock":
                assert touched.exists(), "the exploit itself does not work"
            else:
                assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert not touched.exists()
        if server == "ours":
            assert exchange(observation(1, 5))[0][0] == 5, "and goes on serving"
        speaker.close()
