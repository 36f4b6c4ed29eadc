"""Who may import whom: every import statement of every package, those inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset(
    {"common", "policies", "senders", "receiver", "serving", "sim", "scripts", "tests"}
)


@dataclass(frozen=True)
class Rule:
    """What a package may import of ours besides itself, and of others.

    Attributes:
        ours: modules of ours, each with all that is below it.
        only: the third-party packages that it may import; any when None.
        never: third-party packages that it must not.
    """

    ours: frozenset[str]
    only: frozenset[str] | None = None
    never: frozenset[str] = field(default_factory=frozenset)


def rule(*ours: str, only: set[str] | None = None, never: set[str] | None = None) -> Rule:
    return Rule(
        frozenset(ours), None if only is None else frozenset(only), frozenset(never or set())
    )


RULES = {
    "common": rule(only={"numpy", "zmq", "msgpack", "tyro", "yaml"}),
    "policies": rule("common"),
    # A sender's machine has no accelerator and is set up in seconds.
    "senders": rule("common", never={"torch", "transformers"}),
    "receiver": rule("common", "policies"),
    # A client moves robots through the senders' drivers and tables, never through their programs.
    "serving": rule(
        "common",
        "policies",
        "sim",
        "senders.drivers",
        "senders.registry",
        "senders.robots",
        "senders.cameras",
        "senders.sensors",
        "senders.limits",
    ),
    "sim": rule("common", "senders.drivers"),
    "scripts": rule(*OURS - {"tests"}),
    "tests": rule(*OURS),
}


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of what each import in the source of `module` brings in."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            first = node.args[0] if node.args else None
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def allowed(package: str, name: str) -> bool:
    top, kept = name.partition(".")[0], RULES[package]
    if top == package or top in sys.stdlib_module_names:
        return True
    if top in OURS:
        return any(name == ours or name.startswith(f"{ours}.") for ours in kept.ours)
    return top not in kept.never and (kept.only is None or top in kept.only)


def violations(package: str, source: str, module: str, is_package: bool = False) -> list[str]:
    return [
        f"{module}, line {line}: {package} may not import {name}"
        for line, name in imports(source, module, is_package)
        if not allowed(package, name)
    ]


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_keep_to_the_rules(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(package, path.read_text(encoding="utf-8"), module, is_package)
    assert found == []


def test_every_folder_of_code_has_a_rule() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= OURS
    assert set(RULES) == OURS


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("common.x", "import torch"),
        ("common.x", "import scipy, numpy"),
        ("common.x", "import cv2.aruco"),
        ("common.x", "from receiver.main import run"),
        ("common.x", "import policies"),
        ("policies.x", "from receiver import main"),
        ("policies.x", "import serving"),
        ("policies.q.x", "from ...senders import drivers"),
        ("policies.q.__init__", "from ...sim import rig"),
        ("senders.x", "def load():\n    import torch.nn as nn"),
        ("senders.x", "class A:\n    def f(self):\n        from transformers import AutoModel"),
        ("senders.x", "try:\n    from policies.base import Features\nexcept ImportError: pass"),
        ("senders.x", "import receiver.inputs"),
        ("senders.x", "from sim import rig"),
        ("receiver.x", "import senders.drivers"),
        ("receiver.x", "from serving.queue import ActionQueue"),
        ("receiver.x", "if TYPE_CHECKING:\n    import sim"),
        ("receiver.x", "import importlib\nimportlib.import_module('sim.rig')"),
        ("receiver.x", "__import__('scripts.demo')"),
        ("receiver.x", "from scripts import demo"),
        ("sim.x", "from senders import robot_sender"),
        ("sim.x", "import senders"),
        ("sim.x", "from senders.drivers_of_others import Driver"),
        ("sim.x", "import policies.base"),
        ("sim.x", "import receiver"),
        ("serving.x", "from receiver.actions import ActionLoop"),
        ("serving.x", "from senders.robot_loop import RobotSender"),
        ("scripts.x", "from tests.common import conftest"),
        ("serving.x", "import tests"),
    ],
)
def test_the_check_finds_a_violation(module: str, source: str) -> None:
    is_package = module.endswith(".__init__")
    found = violations(
        module.partition(".")[0], source, module.removesuffix(".__init__"), is_package
    )
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("common.x", "import numpy.typing\nimport zmq\nimport msgpack\nfrom common import wire"),
        ("common.x", "from . import wire\nfrom .jpeg import jpeg_size\nfrom __future__ import x"),
        (
            "policies.q.x",
            "import torch\nfrom ..base import Features\nfrom common.wire import Action",
        ),
        ("senders.cameras.x", "import cv2\nfrom ..drivers import CameraDriver\nimport common.wire"),
        ("receiver.x", "from policies.base import DualRatePolicy\nimport rich"),
        ("sim.x", "from senders import drivers\nfrom senders.drivers import Frame\nimport mujoco"),
        ("sim.x", "import senders.drivers\nfrom sim.rig import Rig"),
        ("serving.x", "import sim.rig\nfrom policies import base"),
        ("serving.x", "from senders.drivers import RobotDriver\nfrom senders import registry"),
        ("scripts.x", "import receiver.main, serving, sim, senders, policies, torch"),
        ("tests.x", "import scripts.demo, tests.common"),
        ("receiver.x", '"""import senders"""  # import sim'),
    ],
)
def test_the_check_lets_the_rest_pass(module: str, source: str) -> None:
    assert violations(module.partition(".")[0], source, module) == []
