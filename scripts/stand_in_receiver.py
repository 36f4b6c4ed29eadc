"""The real receiver around a policy that takes the time it is told: for measuring the receiver.

Sockets, loops, limits and results are the receiver's; the slow half waits, the fast half answers at
once. So any number of views can be received, and passes last as long as a benchmark wants.

python scripts/stand_in_receiver.py --checkpoint - --view-count 16 --pass-ms 50 --duration 10
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from common import cli
from common.clock import now
from common.priority import this_process_first
from common.stopping import stopping
from common.wire import RobotState
from policies.base import ActionChunk, Features, PolicySpec
from receiver.console import Console
from receiver.encoders import LocalEncoder
from receiver.folders import SessionFolders
from receiver.options import ReceiverOptions
from receiver.runtime import Runtime
from receiver.summary import summarize

_WINDOW = 65
_TICK_S = 0.1


@dataclass(frozen=True)
class StandInOptions(ReceiverOptions):
    """Run the receiver with a policy that waits."""

    view_count: int = 5
    """Camera views."""
    pass_ms: float = 50.0
    """Median of a slow pass, spread as `pass_seconds` says."""
    seed: int = 0
    """Of the passes' durations."""


def pass_seconds(nominal_s: float, seed: int, count: int = 100_000) -> NDArray[np.float64]:
    """Durations of slow passes, (count,) in seconds.

    Log-normal around the nominal duration with a standard deviation of 4 %, and every fiftieth
    takes half as long again: passes spread like this beside other work.
    """
    rng = np.random.default_rng(seed)
    durations = nominal_s * np.exp(rng.normal(0.0, 0.04, count))
    durations[rng.random(count) < 0.02] *= 1.5
    return np.asarray(durations)


class StandIn:
    """A policy that waits and holds still; it notes how old what arrived is when it is used."""

    def __init__(self, options: StandInOptions) -> None:
        """`options` say how many views it takes and how long it waits."""
        self.spec = PolicySpec(
            name="stand-in",
            views=tuple(f"View{number + 1}" for number in range(options.view_count)),
            image_size=(364, 204),
            sensor_window=_WINDOW,
            sensor_channels=1 + options.aline_length,
            rows=16,
            columns=("j1", "j2", "j3", "j4", "j5", "j6", "gripper"),
            space="joint_delta",
            dt=1.0 / options.action_hz,
            task="hold still",
        )
        self._seconds = pass_seconds(options.pass_ms / 1e3, options.seed)
        self._passes = 0
        self._rows = np.zeros((16, 7), np.float32)
        self.run: Runtime | None = None
        self.sensor_ms: list[float] = []
        self.robot_ms: list[float] = []
        self.frame_ms: list[float] = []

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> Features:
        """Wait for as long as this pass is to take, from here on."""
        threading.Event().wait(float(self._seconds[self._passes % len(self._seconds)]))
        self._passes += 1
        return self._passes

    def act(
        self,
        features: Features,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        """Stay; and note the ages."""
        run, at = self.run, now()
        if run is not None:
            if run.sensor.arrived_at is not None:
                self.sensor_ms.append(1e3 * (at - run.sensor.arrived_at))
            state = run.robot.newest.get()
            if state is not None:
                self.robot_ms.append(1e3 * (at - state.arrived_at))
            for stream in run.cameras.views.values():
                frame = stream.newest.get()
                sent = frame.frame.send_timestamp if frame else None
                if frame is not None and sent is not None:
                    # Sender and receiver run on one machine here: their wall clocks are one.
                    self.frame_ms.append(1e3 * (frame.arrived_at - sent))
        return ActionChunk(self._rows, self._rows)

    def pack(self, features: Features) -> bytes:
        """The number of the pass."""
        return int(features).to_bytes(8, "little")

    def unpack(self, data: bytes) -> Features:
        """The number of the pass."""
        return int.from_bytes(data, "little")

    def figures(self) -> dict[str, float]:
        """Percentiles of the ages, in ms."""
        figures = {}
        ages = {"sensor": self.sensor_ms, "robot": self.robot_ms, "frame_transport": self.frame_ms}
        for name, values in ages.items():
            for percent in (50, 99):
                found = float(np.percentile(values, percent)) if values else 0.0
                figures[f"{name}_ms_p{percent}"] = found
        return figures


def main() -> int:
    """Run for the duration, write the summary; the exit code."""
    options = cli.parse(StandInOptions)
    policy = StandIn(options)
    sys.setswitchinterval(0.0005)  # as in the receiver
    console = Console(live=False)
    with stopping() as stop:
        run = Runtime(
            options, policy, LocalEncoder(policy), SessionFolders(options.output_dir), console, stop
        )
        before_others = this_process_first()
        run.start()
        policy.run = run
        try:
            while not run.wait(_TICK_S):
                pass
        finally:
            run.close()
            console.close()
    summary: dict[str, Any] = summarize(run) | policy.figures() | {"before_others": before_others}
    if options.summary:
        options.summary.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    return 1 if run.failure else 0


if __name__ == "__main__":
    sys.exit(main())
