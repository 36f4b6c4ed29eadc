"""The encoding process: the slow half of a policy, alone with a processor and Python's lock.

Started by the receiver (`receiver/encoding_process.py`); it ends when the receiver does.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.heap import keep_freed_memory
from common.priority import slow_half_behind
from common.wire import MalformedMessage
from policies.base import DualRatePolicy, PolicyError
from receiver.decoding import Decoder
from receiver.encoding_wire import Gone, receive, send
from receiver.loading import CannotRun, PolicyOptions, black_pictures, load, warm_up


def main() -> int:
    """Load the policy that the first message names, then answer until the receiver is gone."""
    # The receiver decides when this ends, also after a Ctrl+C that reached both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    slow_half_behind()
    connection = Connection(int(sys.argv[1]))
    try:
        policy = _loaded(connection)
        if policy is None:
            return 1
        # What it makes of black pictures tells it from a policy with other weights.
        black = policy.encode(black_pictures(policy.spec), policy.spec.task)
        gc.collect()
        gc.freeze()
        send(connection, {"spec": asdict(policy.spec), "black": policy.pack(black)})
        _serve(connection, policy)
    except Gone:
        pass
    return 0


def _loaded(connection: Connection) -> DualRatePolicy | None:
    """The policy, warmed up; None when it cannot be, which is said."""
    options = PolicyOptions(**receive(connection)["policy"])
    try:
        policy = load(options)
    except PolicyError as error:
        send(connection, {"error": str(error)})
        return None
    except Exception as error:  # a library that cannot be loaded: one line all the same
        send(connection, {"error": f"{type(error).__name__}: {error}"})
        return None
    try:
        warm_up(policy, lambda: policy.encode(black_pictures(policy.spec), policy.spec.task))
    except CannotRun as error:
        send(connection, {"cannot_run": str(error)})
        return None
    return policy


def _serve(connection: Connection, policy: DualRatePolicy) -> None:
    decoder = Decoder(policy.spec.image_size)
    while True:
        asked = receive(connection)
        send(connection, _answer(policy, decoder, asked))


def _answer(policy: DualRatePolicy, decoder: Decoder, asked: dict[str, Any]) -> dict[str, Any]:
    used = time.process_time()
    try:
        features = policy.encode(decoder.decode(asked["jpegs"]), asked["task"])
        return {"features": policy.pack(features), "cpu_s": time.process_time() - used}
    except MalformedMessage as error:
        return {"malformed": error.detail}
    except Exception as error:  # whatever a policy or a device may say: the slow loop says it
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
