"""Robot drivers by name."""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "meca500": DriverEntry("senders.robots.meca500:Meca500", "Mecademic Meca500", needs="mecademicpy", extra="meca500"),  # noqa: E501
    "replay": DriverEntry("senders.robots.replay:ReplayRobot", "the robot of a recorded session", real=False),  # noqa: E501
    "sim": DriverEntry("sim.drivers:SimRobot", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.robots.synthetic:SyntheticRobot", "made-up robot, for trying out", real=False),  # noqa: E501
    "lerobot": DriverEntry("senders.robots.lerobot_arm:LeRobotArm", "arms that LeRobot knows, e.g. SO-101", needs="lerobot", extra="lerobot", install="pip install '.[lerobot]' with Python 3.12"),  # noqa: E501
}
# fmt: on
