"""A client of one side in a process of its own: measures round trips when it is told to.

A number on a line of the input asks for so many; the seconds of each come back as JSON, one line.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from scripts.serving_sides.scene import check, scenes
from scripts.serving_sides.sides import SideName, connect

_BEGIN_S = 90.0


@dataclass(frozen=True)
class RoundTripsOptions:
    """Measure one side."""

    side: SideName
    """Who is at the other end, and in what words."""
    address: str
    """HOST:PORT of the server."""


def main() -> int:
    """Connect, measure as often as asked, leave at the end of the input; the exit code."""
    options = cli.parse(RoundTripsOptions)
    client, source = connect(options.side, options.address), scenes()
    client.begin(_BEGIN_S)
    gc.collect()
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            scene = next(source)
            begun = time.perf_counter()
            chunk = client.exchange(scene)
            took.append(time.perf_counter() - begun)
            check(scene, chunk)
        print(json.dumps(took), flush=True)
    client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
