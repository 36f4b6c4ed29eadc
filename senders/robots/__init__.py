"""Robot drivers by name."""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "sim": DriverEntry("sim.drivers:SimRobot", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.robots.synthetic:SyntheticRobot", "made-up robot, for trying out", real=False),  # noqa: E501
}
# fmt: on
