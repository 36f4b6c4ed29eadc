"""Force sensor drivers by name."""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "replay": DriverEntry("senders.sensors.replay:ReplayForceSensor", "the force sensor of a recorded session", real=False),  # noqa: E501
    "sim": DriverEntry("sim.drivers:SimForceSensor", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.sensors.synthetic:SyntheticForceSensor", "made-up forces and A-scans, for trying out", real=False),  # noqa: E501
    "serial": DriverEntry("senders.sensors.serial_force:SerialForceSensor", "a force sensor on a serial port, by the options that say its format", needs="serial", extra="serial", real=False),  # noqa: E501
}
# fmt: on
