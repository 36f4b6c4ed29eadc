"""Camera drivers by name; a factory makes a list of cameras.

A driver's module may say which cameras are attached, for `--list`, by a function `attached()`.
"""

from senders.registry import DriverEntry

__all__ = ["DRIVERS"]

# fmt: off
DRIVERS = {
    "oak": DriverEntry("senders.cameras.oak:open_oak_cameras", "OAK cameras, JPEG on the device", needs="depthai", extra="oak"),  # noqa: E501
    # Not real in the table's sense: it is used only when asked for, for it needs to be told where.
    "opencv": DriverEntry("senders.cameras.opencv:open_opencv_cameras", "V4L2 devices, RTSP and HTTP streams, video files", real=False),  # noqa: E501
    "replay": DriverEntry("senders.cameras.replay:open_replay_cameras", "the cameras of a recorded session", real=False),  # noqa: E501
    "sim": DriverEntry("sim.drivers:open_sim_cameras", "the simulated rig", needs="mujoco", extra="sim", real=False),  # noqa: E501
    "synthetic": DriverEntry("senders.cameras.synthetic:open_synthetic_cameras", "made-up pictures, for trying out", real=False),  # noqa: E501
    "zed": DriverEntry("senders.cameras.zed:open_zed_cameras", "ZED cameras, left picture; pyzed comes with the ZED SDK", needs="pyzed", install="python get_python_api.py, which comes with the ZED SDK"),  # noqa: E501
}
# fmt: on
