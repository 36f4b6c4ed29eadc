"""The simulated rig's devices as drivers: robot, cameras, force sensor.

Each connects to a running rig process (`python sim/rig_server.py`) and knows nothing of the wire
that the sender programs speak.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import zmq
from numpy.typing import NDArray

from common.endpoints import RIG_COMMAND, RIG_STATE, address
from senders.drivers import DriverError, RobotReading, SampleBlock
from sim.ascan import synthesize
from sim.cameras import SimCamera, open_sim_cameras
from sim.link import RigLink
from sim.messages import SAMPLE_FIELDS, Command, encode_command

__all__ = ["SimCamera", "SimForceSensor", "SimRobot", "open_sim_cameras"]

# Robot states older than this are not passed on.
_STALE_S = 0.5
# At 260 states a second: what a sensor's reader may leave waiting, about a second.
_KEEP_STATES = 260


class SimRobot:
    """The rig's arm."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        state_port: int = RIG_STATE.port,
        command_port: int = RIG_COMMAND.port,
    ) -> None:
        """The arm of the rig process at `host`."""
        self._link = RigLink(host, state_port)
        self._command_address = address(host, command_port)
        self._ipv6 = ":" in host
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._commands: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        """Connect; raises DriverError when no rig answers within 5 s."""
        if self._commands is not None:
            return
        self._link.open()
        self._context = zmq.Context()
        commands = self._context.socket(zmq.PUSH)
        commands.set(zmq.SNDHWM, RIG_COMMAND.hwm)
        commands.set(zmq.LINGER, 200)
        commands.set(zmq.IPV6, 1 if self._ipv6 else 0)
        # Commands for a rig that is away are refused, not kept for when it comes back.
        commands.set(zmq.IMMEDIATE, 1)
        commands.set(zmq.RECONNECT_IVL_MAX, 500)
        commands.connect(self._command_address)
        self._commands = commands
        if not commands.poll(2000, zmq.POLLOUT):
            self.close()
            raise DriverError(f"the simulated rig takes no commands at {self._command_address}")

    def read(self) -> RobotReading:
        """The newest state; waits up to 0.5 s for one, then raises DriverError."""
        # A state comes every 4 ms: one much older is waited out rather than returned.
        state = self._link.newest(0.02, _STALE_S)
        if state is None:
            raise DriverError(f"no state from the simulated rig at {self._link.address} in 0.5 s")
        return RobotReading(
            sampled_at=state.time,
            joints_deg=state.joints_deg,
            pose=state.pose,
            force_n=state.force_n,
            episode=state.episode,
        )

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Go to (6,) joint angles in degrees; raises DriverError when the rig takes none."""
        self._send(Command("joints", np.asarray(joints_deg, dtype=np.float64)))

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Bring the flange to a pose (6,) in mm and degrees; raises DriverError."""
        self._send(Command("pose", np.asarray(pose, dtype=np.float64)))

    def hold(self) -> None:
        """Stay where the arm is now; raises DriverError when the rig takes no command."""
        self._send(Command("hold"))

    def reset(self, seed: int) -> None:
        """Start the next episode with the port where `seed` puts it; raises DriverError."""
        self._send(Command("reset", seed=seed))

    def close(self) -> None:
        """Leave the arm standing still; safe to call twice."""
        if self._commands is not None and self._context is not None:
            with contextlib.suppress(DriverError):
                self.hold()
            self._commands.close()
            self._context.term()
        self._commands = self._context = None
        self._link.close()

    def _send(self, command: Command) -> None:
        if self._commands is None:
            raise DriverError("the simulated robot is not open")
        try:
            self._commands.send(encode_command(command), zmq.NOBLOCK)
        except ValueError as error:
            raise DriverError(f"not a command: {error}") from error
        except zmq.ZMQError as error:
            raise DriverError(
                f"the simulated rig at {self._command_address} takes no commands"
            ) from error


class SimForceSensor:
    """The force sensor at the needle's base and the OCT fibre in its tip, 650 samples a second."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        state_port: int = RIG_STATE.port,
        block: int = 10,
        force_noise_n: float = 0.003,
        seed: int = 0,
    ) -> None:
        """Deliver blocks of at least `block` samples; the noise is drawn from `seed`."""
        self._link = RigLink(host, state_port, keep=_KEEP_STATES)
        self._block = max(block, 1)
        self._noise_n = force_noise_n
        self._rng = np.random.default_rng(seed)

    def open(self) -> None:
        """Start sampling; raises DriverError when no rig answers within 5 s."""
        self._link.open()

    def read(self, timeout_s: float) -> SampleBlock | None:
        """The samples since the last call, once a block of them is there; None when none came."""
        deadline = time.monotonic() + timeout_s
        rows = np.empty((0, SAMPLE_FIELDS))
        while len(rows) < self._block:
            # Two samples at least in every state but the first.
            wanted = max((self._block - len(rows)) // 3, 1)
            states = self._link.take(wanted, deadline - time.monotonic())
            rows = np.concatenate([rows, *(state.samples for state in states)])
            if time.monotonic() >= deadline:
                break
        if not len(rows):
            return None
        noise = self._noise_n * self._rng.standard_normal(len(rows))
        return SampleBlock(
            timestamps=rows[:, 0].copy(),
            forces=(rows[:, 1] + noise).astype(np.float32),
            alines=synthesize(rows[:, 2], self._rng),
        )

    def close(self) -> None:
        """Stop sampling; safe to call twice."""
        self._link.close()
