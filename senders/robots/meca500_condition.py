"""Whether a Meca500 may be used, from what it says of itself."""

from __future__ import annotations

from typing import Any

from senders.drivers import RobotFault
from senders.robots.meca500_feedback import Feedback

__all__ = ["check_error", "check_ready", "check_stops"]

# The fields of the library's RobotSafetyStatus that people (or a guard) set off. Each is 0 when
# reset, 1 while active, 2 when it is over and waits for somebody to reset it.
_STOPS = {
    "estop_state": "emergency stop",
    "pstop1_state": "protective stop 1",
    "pstop2_state": "protective stop 2",
    "operation_mode_stop_state": "operation mode changed",
    "enabling_device_released_stop_state": "enabling device released",
    "voltage_fluctuation_stop_state": "supply voltage fluctuated",
    "reboot_stop_state": "robot has just started",
    "redundancy_fault_stop_state": "safety circuit disagrees with itself",
    "standstill_fault_stop_state": "moved while it had to stand still",
    "minor_error_stop_state": "motor power was taken away by an error",
}
_RESETTABLE = 2
_TOLD_IN_S = 0.05


def check_stops(safety: Any) -> None:
    """Raise RobotFault while a safety stop is on, or over and not yet reset by somebody."""
    active = {name: getattr(safety, field, 0) for field, name in _STOPS.items()}
    named = [
        f"{name}{' (over, waits for its reset)' if state == _RESETTABLE else ''}"
        for name, state in active.items()
        if state
    ]
    if named:
        how = "; reset it at the robot's power supply or in MecaPortal once it is safe to move"
        raise RobotFault("emergency_stop", ", ".join(named) + how)


def check_error(status: Any, feedback: Feedback) -> None:
    """Raise RobotFault when the robot is in error, with its code where that is known."""
    if not status.error_status:
        return
    if status.error_code:  # firmware 11 and later
        line = f"[{int(status.error_code)}] {status.error_msg or ''}".strip()
    else:  # it was told before the status, but comes by another thread
        line = feedback.last_error(_TOLD_IN_S)
    raise RobotFault("error", f"the robot is in error: {line or 'it does not say which'}")


def check_ready(status: Any, safety: Any) -> None:
    """Raise RobotFault when the robot would not move, or would do so later on its own."""
    if not (status.activation_state and status.homing_state):
        raise RobotFault("error", "the robot was deactivated by something else")
    # A paused robot keeps what it is told for when it goes on: it must be told nothing.
    if status.pause_motion_status or safety.connection_dropped_stop_state:
        raise RobotFault("error", "the robot's motion was paused by something else")
