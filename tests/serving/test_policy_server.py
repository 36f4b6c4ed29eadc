"""The server as a program."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.program import OptionError, parse
from serving.engine import Engine
from serving.messages import Instructions
from serving.policy_server import serve
from serving.server_options import ServerOptions
from serving.transports.grpc_link import GrpcLink
from serving.transports.security import ClientKeys, ServerKeys
from serving.transports.zmq_link import ZmqLink
from tests.serving.engines import seen
from tests.serving.wires import begun, exchange
from tests.support import Child, free_ports, wait_until

PROGRAM = "serving/policy_server.py"


def test_it_serves_says_how_things_are_and_leaves(
    program: Callable[..., Child], tmp_path: Path
) -> None:
    grpc, zmq = free_ports(2)
    metrics = tmp_path / "metrics.json"
    server = program(
        *(PROGRAM, "--port", str(grpc), "--zmq-port", str(zmq), "--fps", "30"),
        *("--inference_latency", "0.0", "--obs-queue-timeout", "0.5"),
        *("--preload", "builtin:hold?rows=5", "--metrics_json", str(metrics)),
    )
    server.wait_for(r"\[SERVER\] ready")
    assert "builtin" in server.text
    links = [GrpcLink(f"127.0.0.1:{grpc}"), ZmqLink(f"127.0.0.1:{zmq}")]
    for link in links:
        begun(link)
        for timestep in range(5):
            exchange(link, timestep)
    server.wait_for(
        r"\[SERVER\] 2 sessions \| [\d.]+ requests/s \| batch 1.0 \| "
        r"inference p50 [\d.]+ ms \| p99 [\d.]+ ms \| refusals 0"
    )
    wait_until(metrics.exists, "the metrics")
    for link in links:
        link.close()
    assert server.stop(signal.SIGTERM) == 0
    told = json.loads(metrics.read_text())
    assert told["total"]["predictions"] == 10
    assert told["refused"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert "WARNING" not in server.text


def test_ctrl_c_while_clients_wait_is_a_clean_exit(program: Callable[..., Child]) -> None:
    grpc, zmq = free_ports(2)
    server = program(PROGRAM, "--port", str(grpc), "--zmq_port", str(zmq))
    server.wait_for(r"\[SERVER\] ready")
    for link in (GrpcLink(f"127.0.0.1:{grpc}"), ZmqLink(f"127.0.0.1:{zmq}")):
        begun(link)
        assert link.receive(0.01) is None  # a request of it waits at the server
    assert server.stop() == 0
    assert "Traceback" not in server.text


def test_a_port_in_use(program: Callable[..., Child]) -> None:
    (other,) = free_ports(1)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        server = program(PROGRAM, "--port", str(port), "--zmq_port", "0")
        with pytest.raises(OptionError, match=f"port {port} is in use.*--zmq_port"):
            serve(ServerOptions(port=other, zmq_port=port), threading.Event())
        assert server.end() == 2
    assert server.lines[-1][1].startswith(f"policy_server.py: port {port} is in use"), server.text
    assert "--port" in server.lines[-1][1]
    assert "Traceback" not in server.text


def test_beyond_this_computer_it_warns(program: Callable[..., Child]) -> None:
    grpc, zmq = free_ports(2)
    server = program(
        PROGRAM, "--host", "0.0.0.0", "--port", str(grpc), "--zmq_port", str(zmq), "--duration", "1"
    )
    assert server.end() == 0
    for words in ("not encrypted", "asks nobody", "ZeroMQ on port", "any policy"):
        assert any("WARNING" in line and words in line for _, line in server.lines), words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--inference_latency", "-1"), "--inference_latency"),
        (("--fps", "0"), "--fps"),
        (("--max_clients", "0"), "--max_clients"),
        (("--port", "70000"), "--port"),
        (("--no-grpc", "--zmq_port", "0"), "nothing to listen on"),
        (("--port", "8081"), "must differ"),
        (("--tls_cert", "x.pem"), "belong together"),
        (("--tls_client_ca", "x.pem"), "needs --tls_cert"),
        (("--preload", "act"), "TYPE:PATH"),
        (("--duration", "0"), "--duration"),
        (("--joint_ranges", "elbow.pos", "90", "-90"), "--joint_ranges must have the lower"),
        (("--joint_ranges", "elbow.pos", "nan", "90"), "--joint_ranges must have the lower"),
        (("--joint_ranges", "elbow.pos", "90"), "--joint_ranges"),
        (("--no_such_option", "1"), "no_such_option"),
    ],
)
def test_options_that_cannot_be_used(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(ServerOptions, arguments)
    assert words.replace("_", "-") in str(caught.value).replace("_", "-")
    assert "\n" not in str(caught.value)


def test_options_as_lerobot_writes_them() -> None:
    options = parse(
        ServerOptions,
        [
            *("--host=127.0.0.1", "--port=8080", "--fps=30"),
            *("--inference_latency=0.033", "--obs_queue_timeout=1"),
        ],
    )
    assert options == ServerOptions()
    engine = options.engine()
    assert (engine.fps, engine.inference_latency_s, engine.obs_queue_timeout_s) == (30, 0.033, 1)


def test_the_tolerance_is_a_share_of_the_ranges_that_are_given(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("joint_ranges: {elbow.pos: [-90, 90], gripper.pos: [0, 100]}\n")
    given = ("--joint_ranges", "elbow.pos", "-90", "90", "gripper.pos", "0", "100")
    for arguments in (given, ("--config", str(file))):
        engine = parse(ServerOptions, ("--similarity", "0.01", *arguments)).engine()
        assert engine.joint_ranges == {"elbow.pos": (-90.0, 90.0), "gripper.pos": (0.0, 100.0)}
    with contextlib.closing(Engine(engine)) as served:
        served.ready("a")
        names = ("elbow.pos", "gripper.pos")
        served.instruct("a", Instructions("builtin", "hold", state_names=names))
        assert served.observe("a", seen(1, (0.0, 0.0)))
        assert served.answer("a") is not None
        assert not served.observe("a", seen(2, (1.7, 0.9)))
        assert served.observe("a", seen(3, (1.7, 1.1)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preload", "builtin:sing"), "no builtin policy 'sing'"),
        (("--preload", "nonsense:there"), "nonsense"),
        (("--curve_keys", "/no/such/folder"), "cannot be read"),
        (("--token_file", "/no/such/file"), "cannot be read"),
        (("--host", "192.0.2.7"), "192.0.2.7"),
        (("--host", "192.0.2.7", "--zmq_port", "0"), "--host 192.0.2.7: cannot be used"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    grpc, zmq = free_ports(2)
    options = parse(ServerOptions, ("--port", str(grpc), "--zmq_port", str(zmq), *arguments))
    with pytest.raises(OptionError) as caught:
        serve(options, threading.Event())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_certificates_that_are_none_are_one_line(tmp_path: Path) -> None:
    words = []
    for option, kind in (("--tls_cert", "CERTIFICATE"), ("--tls_key", "PRIVATE KEY")):
        file = tmp_path / kind
        file.write_text(f"-----BEGIN {kind}-----\nbm90aGluZw==\n-----END {kind}-----\n")
        words += [option, str(file)]
    (port,) = free_ports(1)
    options = parse(ServerOptions, ("--port", str(port), "--zmq_port", "0", *words))
    with pytest.raises(OptionError, match="do --tls_cert and --tls_key belong together"):
        serve(options, threading.Event())


def test_it_makes_keys(program: Callable[..., Child], tmp_path: Path) -> None:
    made = program(PROGRAM, "--make_keys", str(tmp_path / "keys"))
    assert made.end() == 0
    assert "--curve_keys" in made.text
    ServerKeys.load(tmp_path / "keys" / "server")
    ClientKeys.load(tmp_path / "keys" / "robot")


BLOCKED = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lerobot", "transformers"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Nowhere())
from serving.policy_server import main
sys.exit(main())
"""


def test_it_needs_no_torch_and_no_lerobot(program: Callable[..., Child]) -> None:
    grpc, zmq = free_ports(2)
    server = program(
        *("-c", BLOCKED, "--port", str(grpc), "--zmq_port", str(zmq), "--duration", "0.5"),
        *("--preload", "builtin:hold"),
    )
    assert server.end() == 0, server.text
    assert "[SERVER] ready" in server.text
