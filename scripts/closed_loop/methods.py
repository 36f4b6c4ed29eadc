"""The ways to run a policy that the study compares, by name.

`sync` or `sync-8`: predict, execute the whole chunk or its first 8 rows, predict again.
`async-AGGREGATION` or `async-AGGREGATION@0.9`: a queue that is filled at half a chunk left, or at
nine tenths. `rtc` or `rtc-4`: real-time chunking, at least 1 or 4 rows apart; it takes a flow head.
`dual-4`: features serve 4 ticks at least.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from policies.base import DualRatePolicy
from scripts.closed_loop.chunks import Queueing, run_chunks
from scripts.closed_loop.dual_rate import run_dual_rate
from scripts.closed_loop.rig import VirtualRig
from scripts.closed_loop.rtc import run_rtc
from scripts.closed_loop.running import Latencies, Tally
from serving import aggregation

__all__ = ["USUAL", "Method", "MethodError", "method"]

USUAL = (
    "sync",
    "async-latest_only",
    "async-weighted_average",
    "async-average",
    "async-conservative",
    "dual-1",
    "dual-2",
    "dual-4",
    "dual-8",
)
"""Those that are compared unless others are named."""

_ACTION_HZ = 10.0
_THRESHOLD = 0.5
_MOST = 1000

Runner = Callable[[VirtualRig, DualRatePolicy, Latencies], Tally]


class MethodError(ValueError):
    """A method that there is not; one line."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to run a policy.

    Attributes:
        name: as on the command line.
        family: `sync`, `async`, `rtc` or `dual`.
        label: for people.
        run: runs the episode that a rig has begun to its end.
    """

    name: str
    family: str
    label: str
    run: Runner


def method(name: str) -> Method:
    """The method of that name; MethodError where there is none."""
    family, _, rest = name.partition("-")
    made = {"sync": _sync, "async": _asynchronous, "rtc": _real_time, "dual": _dual}.get(family)
    if made is None or (family not in ("sync", "rtc") and not rest):
        raise _unknown(name)
    return made(name, rest)


def _sync(name: str, rest: str) -> Method:
    rows = _count(name, rest) if rest or name != "sync" else None
    used = "whole chunks" if rows is None else f"{rows} rows"
    run = partial(run_chunks, queueing=Queueing(rows, 0.0))
    return Method(name, "sync", f"synchronous, {used}", run)


def _asynchronous(name: str, rest: str) -> Method:
    chosen, at, given = rest.partition("@")
    if chosen not in aggregation.names():
        raise MethodError(
            f"no aggregation {chosen!r} ({name}): there are {', '.join(aggregation.names())}"
        )
    try:
        threshold = float(given) if at else _THRESHOLD
    except ValueError:
        raise _unknown(name) from None
    if not 0.0 < threshold <= 1.0:
        raise MethodError(f"the threshold of {name} must be above 0 and at most 1")
    label = f"async, {chosen.replace('_', ' ')}" + (f", at {threshold:g}" if at else "")
    run = partial(run_chunks, queueing=Queueing(None, threshold, chosen))
    return Method(name, "async", label, run)


def _real_time(name: str, rest: str) -> Method:
    rows = _count(name, rest) if rest or name != "rtc" else 1
    label = "real-time chunking" + (f", {rows} rows apart" if rest else "")
    return Method(name, "rtc", label, partial(run_rtc, least_rows=rows))


def _dual(name: str, rest: str) -> Method:
    reuse = _count(name, rest)
    run = partial(run_dual_rate, reuse=reuse, action_hz=_ACTION_HZ)
    return Method(name, "dual", f"dual-rate, reuse {reuse}", run)


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text) or int(text) > _MOST:
        raise _unknown(name)
    return int(text)


def _unknown(name: str) -> MethodError:
    return MethodError(
        f"no method {name!r}: there are sync, sync-ROWS, async-AGGREGATION, "
        f"async-AGGREGATION@THRESHOLD, rtc, rtc-ROWS and dual-REUSE, e.g. {', '.join(USUAL)}"
    )
