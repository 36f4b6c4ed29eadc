"""The receiver with a slow half that takes longer: for the study on the real clock.

    python scripts/closed_loop/delayed_receiver.py 381 --checkpoint PATH …

The first argument is how long a pass takes at least, in ms; the others are the receiver's. A pass
that is ready earlier is kept until then: to the loops it is one that took so long, on pictures of
when it began. The processor is free meanwhile, as it is where a GPU computes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.wire import Buffer
from policies.base import Features
from receiver import main as receiver_main
from receiver.encoding_process import EncodingProcess

__all__ = ["main"]

_MOST_MS = 10_000.0


def main() -> int:
    """Run the receiver; the exit code."""
    latency_s = _latency_s(sys.argv[1:2])
    del sys.argv[1]

    class Delayed(EncodingProcess):
        """A slow half that never takes less than the latency."""

        _over = threading.Event()

        def encode(self, jpegs: Mapping[str, Buffer], task: str) -> Features:
            """One pass, and what is left of the latency."""
            due = time.monotonic() + latency_s
            features = super().encode(jpegs, task)
            self._over.wait(max(due - time.monotonic(), 0.0))
            return features

        def close(self) -> None:
            """End the process; a pass that waits ends at once."""
            self._over.set()
            super().close()

    # The receiver has no option for a policy that is slower than it is, and needs none.
    receiver_main.EncodingProcess = Delayed  # type: ignore[misc,attr-defined]
    # In a process of its own also on a GPU: what is delayed is the one that has a process.
    sys.argv += ["--slow-loop", "process"]
    return receiver_main.main()


def _latency_s(given: list[str]) -> float:
    try:
        latency_ms = float(given[0])
    except (IndexError, ValueError):
        cli.fail("the first argument is the latency of the slow half in ms")
    if not 0.0 <= latency_ms <= _MOST_MS:
        cli.fail(f"the latency is from 0 to {_MOST_MS:g} ms, not {latency_ms:g}")
    return latency_ms / 1e3


if __name__ == "__main__":
    sys.exit(main())
