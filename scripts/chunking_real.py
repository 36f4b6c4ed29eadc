"""Settings tried for real: a server, a client with a simulated robot, and the network between."""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np

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
            until = time.monotonic()
            self._rig.stop(client)
            summary = self._rig.summary(name)
        except RigError as error:
            raise SweepError(self._rig.why(error)) from None
        return outcome_of(setting, given.fps, read_commands(self._rig.record(name)), summary, until)

    def _wait_for_motion(self, client: Program) -> None:
        """Until the control loop runs; it asks for its first chunk in its first tick."""
        self._rig.wait_for_words(client, "[CLIENT] running", _START_S)


def outcome_of(
    setting: Setting, fps: float, log: CommandLog, summary: dict[str, Any], until: float
) -> Outcome:
    """What a record and a client's summary say of a setting, from the first motion on.

    `until` (monotonic seconds) is when the client was told to stop: a hold after that is the end's.
    """
    answer_ms = summary["round_trip_ms"]["p50"]
    begin = float(log.moves_at[0]) if len(log.moves_at) else math.inf
    running = log.between(begin, until)
    moves = np.flatnonzero(running.is_move)
    if len(moves) < 2:
        return Outcome(setting, 1.0, 0.0, summary["control_hz"], math.nan, math.nan, 0, 0.0)
    ticks = ticks_of(running.moves_at, 1 / fps)
    # A hold is told when it begins. A pause without one is the computer's that was too busy, the
    # rate's fault and not the queue's.
    held = np.diff(moves) > 1
    empty = int(np.maximum(np.diff(ticks) - 1, 1)[held].sum())
    if not running.is_move[-1]:  # still on hold when it was told to stop
        empty += math.ceil((until - float(running.at[moves[-1] + 1])) * fps)
    seconds = until - begin
    return Outcome(
        setting,
        empty=empty / (seconds * fps),
        jerk=jerk_rms(on_ticks(running.at, running.targets, 1 / fps), 1 / fps),
        rate_hz=summary["control_hz"],
        answer_ms=math.nan if answer_ms is None else answer_ms,
        age_ms=math.nan,
        chunks=summary["chunks"],
        seconds=seconds,
    )
