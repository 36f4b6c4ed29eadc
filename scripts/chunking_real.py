"""Settings tried for real: a server, a client with a simulated robot, and the network between."""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from scripts.chunking_model import Conditions, Outcome, Setting, jerk_rms, on_ticks, ticks_of
from scripts.command_log import CommandLog, read_commands
from scripts.network_proxy import NetworkProxy
from scripts.processes import Program
from scripts.serving_rig import RigError, ServingRig, builtin_path

__all__ = ["RealSweep", "SweepError", "outcome_of"]

_START_S = 60.0
_AMPLITUDE, _PERIOD_S, _WANDER = 20.0, 4.0, 0.5
"""How the policy moves: as in `chunking_quick`."""


class SweepError(Exception):
    """A setting that could not be run; one line."""


class RealSweep:
    """A server that stays, and for each setting a client of its own. A context manager."""

    def __init__(
        self, given: Conditions, transport: str, pictures: tuple[int, int, int], seed: int
    ) -> None:
        """`pictures`: how many cameras, and their width and height."""
        self._given, self._transport, self._pictures = given, transport, pictures
        self._folder = TemporaryDirectory(prefix="tune-chunking-")
        self._rig = ServingRig(Path(self._folder.name))
        self._seed = seed
        self._proxy: NetworkProxy | None = None
        self._runs = 0

    def __enter__(self) -> RealSweep:
        """Start the server."""
        try:
            self._rig.start_server()
        except RigError as error:
            self._close()
            raise SweepError(str(error)) from None
        given = self._given
        self._proxy = NetworkProxy(
            ("127.0.0.1", self._rig.port(self._transport)),
            given.delay_s,
            given.jitter_s,
            given.loss,
            self._seed,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._close()

    def _close(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        self._rig.close()
        self._folder.cleanup()

    def run(self, setting: Setting, seconds: float, aggregation: str) -> Outcome:
        """One setting, for `seconds` of motion; SweepError where the client fails."""
        assert self._proxy is not None
        self._runs += 1
        given, name = self._given, f"client{self._runs}"
        path = builtin_path(
            "sway",
            rows=setting.actions_per_chunk,
            amplitude=_AMPLITUDE,
            period_steps=max(2.0, _PERIOD_S * given.fps),
            wander=_WANDER,
            inference_s=given.inference_s,
        )
        cameras, width, height = self._pictures
        robot = {"cameras": cameras, "width": width, "height": height}
        options = {
            "fps": given.fps,
            "actions_per_chunk": setting.actions_per_chunk,
            "chunk_size_threshold": setting.chunk_size_threshold,
            "aggregate_fn_name": aggregation,
            "max_input_age": 3600.0,
        }
        try:
            client = self._rig.start_client(
                name, self._proxy.port, self._transport, path, robot, options
            )
            self._wait_for_motion(client)
            time.sleep(seconds)
            self._rig.stop(client)
            summary = self._rig.summary(name)
        except RigError as error:
            raise SweepError(self._rig.why(error)) from None
        return outcome_of(setting, given.fps, read_commands(self._rig.record(name)), summary)

    def _wait_for_motion(self, client: Program) -> None:
        """Until the control loop runs; it asks for its first chunk in its first tick."""
        self._rig.wait_for_words(client, "[CLIENT] running", _START_S)


def outcome_of(setting: Setting, fps: float, log: CommandLog, summary: dict[str, Any]) -> Outcome:
    """What a record and a client's summary say of a setting, from the first motion on."""
    moves_at = log.moves_at
    answer_ms = summary["round_trip_ms"]["p50"]
    if len(moves_at) < 2:
        return Outcome(setting, 1.0, 0.0, summary["control_hz"], math.nan, math.nan, 0, 0.0)
    begin, end = float(moves_at[0]), float(log.at[-1])
    ticks = int(ticks_of(moves_at, 1 / fps)[-1]) + 1
    # The last command is the hold at the end, which comes within the last action's period.
    ticks += max(0, math.floor((end - float(moves_at[-1])) * fps - 0.5))
    pauses = ticks - len(moves_at)
    # Ticks that the computer was too busy for are the rate's fault, not the queue's.
    empty = max(0.0, pauses - summary["missed_ticks"]) / ticks
    running = log.between(begin, end)
    return Outcome(
        setting,
        empty=empty,
        jerk=jerk_rms(on_ticks(running.at, running.targets, 1 / fps), 1 / fps),
        rate_hz=summary["control_hz"],
        answer_ms=math.nan if answer_ms is None else answer_ms,
        age_ms=math.nan,
        chunks=summary["chunks"],
        seconds=end - begin,
    )
