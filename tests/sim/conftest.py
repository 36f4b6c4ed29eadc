"""What the simulation's tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from senders.drivers import DriverError
from sim.model import build_model
from sim.rendering import RigRenderer
from tests.support import Child, free_ports


@dataclass(frozen=True)
class Rig:
    """A rig process and where it is."""

    child: Child
    state_port: int
    command_port: int


@pytest.fixture
def rig(program: Callable[..., Child]) -> Callable[..., Rig]:
    """Starts rig processes, on free ports or on the given ones."""

    def start(*options: str, ports: list[int] | None = None) -> Rig:
        state, command = ports or free_ports(2)
        where = ["--state-port", str(state), "--command-port", str(command)]
        child = program("sim/rig_server.py", *where, *options)
        child.wait_for("rig: state at")
        return Rig(child, state, command)

    return start


@pytest.fixture(scope="session")
def rendering() -> None:
    """Skips a test where no picture can be rendered, with the reason."""
    try:
        RigRenderer(build_model(), 32, 32).close()
    except DriverError as error:
        pytest.skip(str(error))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
