"""Force sensor drivers by name."""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "sim": DriverEntry("sim.drivers:SimForceSensor", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.sensors.synthetic:SyntheticForceSensor", "made-up forces and A-scans, for trying out", real=False),  # noqa: E501
}
# fmt: on
