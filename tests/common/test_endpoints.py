from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from common import endpoints

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "senders", "receiver", "policies", "serving", "sim", "scripts")
PORTS = {endpoint.port for endpoint in endpoints.STREAMS}
IN_TEXT = re.compile(rf"(?<!\d)({'|'.join(map(str, sorted(PORTS)))})(?!\d)")


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Strings that stand alone as a statement; nothing is done with them."""
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}


def named_ports(source: str) -> list[tuple[int, object]]:
    """Line and value of every constant that is, or holds, a port number of the table."""
    tree = ast.parse(source)
    skipped, found = docstrings(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or node in skipped:
            continue
        value = node.value
        number = isinstance(value, (int, float)) and value in PORTS
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if number or (isinstance(text, str) and IN_TEXT.search(text)):
            found.append((node.lineno, value))
    return sorted(found, key=lambda hit: hit[0])


def test_the_search_for_ports_finds_them() -> None:
    source = (
        '"""On 5555."""\n# 5556\nport = 5557\nx = f"tcp://*:5555/{port}"\ny = b":9999"\nz = 55551'
    )
    assert named_ports(source) == [(3, 5557), (4, "tcp://*:5555/"), (5, b":9999")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_module_names_a_port(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}": value
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / "common" / "endpoints.py"
        for line, value in named_ports(path.read_text(encoding="utf-8"))
    }
    assert found == {}


def test_what_deployed_senders_rely_on() -> None:
    table = {
        e.stream: (e.pattern, e.port, e.topic)
        for e in (endpoints.CAMERA, endpoints.ROBOT, endpoints.SENSOR)
    }
    assert table == {
        "camera": ("PUSH→PULL", 5555, b""),
        "robot": ("PUB→SUB", 5556, b"robot_state"),
        "sensor": ("UDP", 9999, b""),
    }
    assert (endpoints.ACTION.port, endpoints.ACTION.topic) == (5557, b"action")
    assert endpoints.TIME.port == 5558


def test_streams_share_neither_name_nor_port() -> None:
    assert len(PORTS) == len({e.stream for e in endpoints.STREAMS}) == len(endpoints.STREAMS)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", "tcp://localhost:7"),
        ("*", "tcp://*:7"),
        ("192.168.0.5", "tcp://192.168.0.5:7"),
        ("::1", "tcp://[::1]:7"),
        ("[fe80::1]", "tcp://[fe80::1]:7"),
    ],
)
def test_address(host: str, expected: str) -> None:
    assert endpoints.address(host, 7) == expected
