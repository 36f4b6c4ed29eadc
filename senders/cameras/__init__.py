"""Camera drivers by name; a factory makes a list of cameras."""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "sim": DriverEntry("sim.drivers:open_sim_cameras", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.cameras.synthetic:open_synthetic_cameras", "made-up pictures, for trying out", real=False),  # noqa: E501
}
# fmt: on
