"""LeRobot's own server while it loads a policy: our client knows it for alive by its GetActions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("grpc", reason="gRPC is not installed: make test-lerobot")

from serving.transports.grpc_link import GrpcLink
from tests.lerobot import checkpoints
from tests.lerobot.checkpoints import instructions, observation
from tests.support import Child, free_ports, wait_until

# Loading waits for a line on standard input, as it would for a disk or a network.
SLOW_SERVER = """
import sys
from lerobot.async_inference import policy_server
found = policy_server.get_policy_class
def slowly(kind):
    print("LOADING", flush=True)
    sys.stdin.readline()
    return found(kind)
policy_server.get_policy_class = slowly
policy_server.serve()
"""


def test_lerobots_server_answers_while_it_loads(
    program: Callable[..., Child],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("serving.transports.grpc_link._STOCK_LOADING_SILENT_S", 4.0)
    caplog.set_level("INFO", "serving.link")
    (port,) = free_ports(1)
    server = program(
        *("-c", SLOW_SERVER, "--host=127.0.0.1", f"--port={port}", "--obs_queue_timeout=1"),
        cwd=tmp_path,  # it makes a folder for logs
    )
    server.wait_for("PolicyServer started", 120)
    link, asked = GrpcLink(f"127.0.0.1:{port}"), instructions("act", checkpoints.act(tmp_path))
    ended: list[Exception | None] = []

    def begin() -> None:
        try:
            link.begin(asked, 30.0)
            ended.append(None)
        except Exception as error:
            ended.append(error)

    threading.Thread(target=begin, daemon=True).start()
    server.wait_for("LOADING")
    # Said when it has answered, and after five seconds for the first time.
    wait_until(lambda: "is loading the policy" in caplog.text or ended, "a word of it")
    assert not ended
    server.tell("")
    wait_until(lambda: ended, "the policy", 120)
    assert ended == [None]
    link.send(observation(0), 30.0)
    assert link.receive(30.0) is not None
    link.close()
