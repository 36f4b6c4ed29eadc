"""The page about the wire: its examples run, and its table of reasons is the code's."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from common import endpoints, wire

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
EXAMPLES = {
    match[1]: match[0]
    for match in (re.match(r"# (\w+):[\s\S]+", code) for code in PAGE.split("```python\n")[1:])
    if match
}


def example(name: str) -> str:
    return EXAMPLES[name].split("```")[0]


@contextmanager
def running(code: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
    try:
        yield
        assert process.poll() is None, "the example ended by itself"
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_example_robot_sender(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    port = free_port()
    code = example("robot_sender").replace(f"*:{endpoints.ROBOT.port}", f"127.0.0.1:{port}")
    with context.socket(zmq.SUB) as sub, running(code, tmp_path):
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{port}")
        assert sub.poll(20_000)
        state = wire.decode_robot(sub.recv_multipart())
    assert isinstance(state, wire.RobotState)
    assert state.pose == (190.0, 0.0, 308.0, 0.0, 90.0, 0.0)


@pytest.mark.parametrize("as_msgpack", [False, True])
def test_example_camera_sender(
    context: zmq.Context[zmq.Socket[bytes]],
    tmp_path: Path,
    make_jpeg: Callable[..., bytes],
    as_msgpack: bool,
) -> None:
    code = example("camera_sender")
    if as_msgpack:
        code = code.replace("json.dumps(header).encode()", "msgpack.packb(header)")
        code = f"import msgpack\n{code}"
    (tmp_path / "picture.jpg").write_bytes(make_jpeg(640, 360))
    with context.socket(zmq.PULL) as pull:
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        code = code.replace(f"localhost:{endpoints.CAMERA.port}", f"127.0.0.1:{port}")
        with running(code, tmp_path):
            assert pull.poll(20_000)
            header, jpeg = pull.recv_multipart()
    assert header.startswith(b"{") is not as_msgpack
    frame = wire.decode_camera([header, jpeg])
    assert (frame.camera, frame.width) == ("ZED_41182735_left", 640)


def test_example_sensor_sender(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(20)
        there = f'("127.0.0.1", {udp.getsockname()[1]})'
        code = example("sensor_sender").replace(f'("localhost", {endpoints.SENSOR.port})', there)
        with running(code, tmp_path):
            batch = wire.decode_samples(udp.recv(1 << 16))
    assert batch.alines.shape == (10, wire.ALINE_LENGTH)
    assert (batch.send_timestamps >= batch.timestamps).all()


def test_example_time_asker(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    with context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        code = example("time_asker").replace(
            f"localhost:{endpoints.TIME.port}", f"127.0.0.1:{port}"
        )
        with running(code, tmp_path):
            asked = []
            for _ in range(2):
                assert router.poll(20_000)
                peer, empty, data = router.recv_multipart()
                asked.append(wire.decode_time_request([data]))
                reply = wire.TimeReply(asked[-1].seq or 0, 1.0, 2.0)
                router.send_multipart([peer, empty, wire.encode_time_reply(reply)])
    first, second = asked
    assert (first.source, first.seq, first.answered_seq) == ("robot", 1, None)
    assert (second.seq, second.answered_seq) == (2, 1)
    assert second.answered_at is not None and first.sent_at is not None
    assert second.answered_at >= first.sent_at


def test_examples_are_short() -> None:
    assert sorted(EXAMPLES) == ["camera_sender", "robot_sender", "sensor_sender", "time_asker"]
    for name in EXAMPLES:
        assert len(example(name).splitlines()) <= 15, name


def reasons_in(*folders: str) -> set[str]:
    """Every reason that code gives: the second argument of a MalformedMessage."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MalformedMessage":
                reason = node.args[1]
                assert isinstance(reason, ast.Constant), f"{path}:{node.lineno}"
                found.add(str(reason.value))
    return found


def test_the_table_of_reasons_is_complete() -> None:
    rows = re.findall(r"^\| (robot|camera|sensor|action|time) \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {reason for _, reason in rows} == reasons_in("common", "receiver")


def test_the_page_names_the_ports_and_the_bounds() -> None:
    for endpoint in (endpoints.CAMERA, endpoints.ROBOT, endpoints.ACTION, endpoints.TIME):
        assert re.search(rf"^\| \[{endpoint.stream}\].*tcp {endpoint.port} ", PAGE, re.MULTILINE)
    assert f"udp {endpoints.SENSOR.port}" in PAGE
    for bound in (wire.MAX_HEADER, wire.MAX_DATAGRAM, wire.MAX_ACTION, wire.MAX_ACTION_VALUES):
        assert f"{bound:,}" in PAGE
    for bound in (
        wire.MAX_NAME,
        wire.MAX_NAMES,
        wire.MAX_TIME,
        wire.MAX_ITEMS,
        wire.MAX_JPEG >> 20,
        int(wire.MAX_MAGNITUDE),
    ):
        assert f"{bound:,} " in PAGE
