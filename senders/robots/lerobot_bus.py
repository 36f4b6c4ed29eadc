"""What LeRobot leaves out on the servo buses (Feetech, Dynamixel) that most of its arms are on.

LeRobot reads positions without looking at the servos' error bytes, and switches the torque on
while a servo may still hold an old target. Both are done here, through LeRobot's own bus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senders.drivers import DriverError, RobotFault

__all__ = ["check_possible", "drop_late_answers", "joint_ranges", "make_ready"]
__all__ += ["raise_faults", "serial_bus", "switch_torque"]

# Register with a bit for each error, and what the bits mean: the error bits of Feetech's SDK
# (scservo_sdk, ERRBIT_*); "Hardware Error Status" of the Dynamixel X series' manual.
_FAULTS = {
    "Status": ("voltage", "position sensor", "overheated", "overcurrent", "bit 4", "overload"),
    "Hardware_Error_Status": (
        "input voltage",
        "bit 1",
        "overheated",
        "encoder",
        "electrical shock",
        "overload",
    ),
}

_FURTHEST_DEG = 360.0
"""Further than any joint is from the middle of its range: a servo counts one turn."""
_COMM_SUCCESS = 0
"""The same in both servo makers' SDKs."""


def serial_bus(robot: Any) -> Any | None:
    """The robot's one bus of serial servos; None for a robot that is not built like that."""
    from lerobot.motors.motors_bus import SerialMotorsBus

    bus = getattr(robot, "bus", None)
    return bus if isinstance(bus, SerialMotorsBus) else None


def joint_ranges(robot: Any, joints: tuple[str, ...]) -> list[tuple[float, float]] | None:
    """Lowest and highest value of each joint by the calibration; None where there is none.

    Degrees (about the middle of the calibrated range, as LeRobot counts), or the percents of a
    joint that LeRobot does not give in degrees, such as a gripper.
    """
    from lerobot.motors import MotorNormMode

    bus = serial_bus(robot)
    if bus is None or not set(joints) <= set(bus.motors) & set(bus.calibration):
        return None
    ranges = []
    for joint in joints:
        motor, calibrated = bus.motors[joint], bus.calibration[joint]
        ticks = bus.model_resolution_table[motor.model] - 1
        half = (calibrated.range_max - calibrated.range_min) / 2 * 360.0 / ticks
        ranges.append(
            {
                MotorNormMode.RANGE_0_100: (0.0, 100.0),
                MotorNormMode.RANGE_M100_100: (-100.0, 100.0),
                MotorNormMode.DEGREES: (-half, half),
            }[motor.norm_mode]
        )
    return ranges


def make_ready(robot: Any, how_to_calibrate: str) -> None:
    """Look at the servos before LeRobot connects, which switches their torque on.

    Every servo's target becomes where it stands, so that the arm does not jump to an old one.
    Raises DriverError for servos that are missing or not calibrated, RobotFault for an error.
    """
    bus = serial_bus(robot)
    if bus is None:
        return
    bus.connect(handshake=False)
    try:
        _check_present(bus)
        raise_faults(robot)
        if not bus.is_calibrated:
            raise DriverError(
                f"the servos do not hold the calibration of {robot.calibration_fpath}: "
                f"{how_to_calibrate}"
            )
        drop_late_answers(robot)
        standing = bus.sync_read("Present_Position", normalize=False, num_retry=2)
        bus.sync_write("Goal_Position", standing, normalize=False)
    finally:
        bus.disconnect(disable_torque=False)


def _check_present(bus: Any) -> None:
    """DriverError that names the servos that do not answer."""
    # A servo in error answers a ping with an error, which LeRobot takes for no answer.
    missing = []
    for name, motor in bus.motors.items():
        _, result, _ = bus.packet_handler.ping(bus.port_handler, motor.id)
        if result != _COMM_SUCCESS:
            missing.append(f"{motor.id} ({name})")
    if missing:
        raise DriverError(
            f"no answer from servo {', '.join(missing)} on {bus.port}: check power and cables"
        )


def raise_faults(robot: Any) -> None:
    """RobotFault when a servo reports an error; LeRobot reads positions without looking."""
    bus = serial_bus(robot)
    if bus is None:
        return
    tables = [bus.model_ctrl_table[model] for model in bus.models]
    for register, meanings in _FAULTS.items():
        if not all(register in table for table in tables):
            continue
        found = _bits(robot, register)
        if any(found.values()):
            # A position that comes late is read as bits, and an arm must not be stopped for that:
            # what a servo reports stays until its cause is gone.
            again = _bits(robot, register)
            found = {name: bits & again.get(name, 0) for name, bits in found.items()}
        shown = [f"{name}: {_names(bits, meanings)}" for name, bits in found.items() if bits]
        if shown:
            raise RobotFault(
                "error", f"{'; '.join(shown)}; relieve the arm, switch its power off and on"
            )


def _bits(robot: Any, register: str) -> dict[str, int]:
    """The register of every servo."""
    drop_late_answers(robot)
    bus = serial_bus(robot)
    assert bus is not None
    found = bus.sync_read(register, normalize=False, num_retry=2)
    return {name: int(bits) for name, bits in found.items()}


def drop_late_answers(robot: Any) -> None:
    """Forget what servos answered after nobody waited any more; call it before each reading.

    The servo makers' SDKs tell answers apart by the servo alone: one to another question, or to an
    earlier one, would be read as the position.
    """
    bus = serial_bus(robot)
    port = None if bus is None else getattr(bus.port_handler, "ser", None)
    if port is not None:
        port.reset_input_buffer()


def check_possible(robot: Any, positions: Mapping[str, float]) -> None:
    """DriverError for positions (`joint.pos` → value) that no servo can be at."""
    if serial_bus(robot) is None:
        return
    mad = {name: value for name, value in positions.items() if abs(value) > _FURTHEST_DEG}
    if mad:
        raise DriverError(f"the servos' answers are mixed up ({mad}): check the cables")


def _names(bits: int, meanings: tuple[str, ...]) -> str:
    named = [text for bit, text in enumerate(meanings) if bits >> bit & 1]
    return ", ".join(named) or f"status {bits:#04x}"


def switch_torque(robot: Any, on: bool) -> None:
    """Switch every servo's torque; DriverError for a robot of which that is not known."""
    bus = serial_bus(robot)
    if bus is None:
        raise DriverError("torque=false works with arms on a servo bus only")
    (bus.enable_torque if on else bus.disable_torque)()
