"""Records messages of real LeRobot into tests/serving/data; run where LeRobot is installed.

    python tests/serving/record_pickles.py

Protocol 4 is what Python 3.10 to 3.13 write, 5 what 3.14 writes.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "data"
PROTOCOLS = (4, 5)
JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
CAMERAS = {"front": (4, 6, 3), "wrist": (2, 3, 3)}
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def picture(name: str) -> Any:
    """Pixels that differ by camera."""
    shape = CAMERAS[name]
    return (np.arange(np.prod(shape)) + len(name)).astype(np.uint8).reshape(shape)


def setup() -> Any:
    """As `RobotClient` makes it."""
    from lerobot.async_inference.helpers import RemotePolicyConfig
    from lerobot.utils.feature_utils import hw_to_dataset_features

    hardware: dict[str, Any] = dict.fromkeys(JOINTS, float) | CAMERAS
    features = hw_to_dataset_features(hardware, "observation", use_video=False)
    return RemotePolicyConfig("act", "someone/act", features, 50, "cuda")


def observation() -> Any:
    """As `RobotClient` sends it, from a robot whose joints are Python's and NumPy's numbers."""
    from lerobot.async_inference.helpers import TimedObservation

    raw: dict[str, Any] = {JOINTS[0]: 1.5, JOINTS[1]: np.float32(-2.25), JOINTS[2]: 30}
    raw |= {name: picture(name) for name in CAMERAS}
    return TimedObservation(1700000000.25, 7, raw | {"task": "pick the cube"}, True)


def actions(kind: str = "float32") -> Any:
    """As `PolicyServer` answers: the rows of one tensor."""
    import torch
    from lerobot.async_inference.helpers import TimedAction

    rows = torch.from_numpy(ROWS).to(getattr(torch, kind))
    return [TimedAction(1700000000.25 + i / 32, 7 + i, row) for i, row in enumerate(list(rows))]


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    made = {"setup": setup(), "observation": observation(), "actions": actions()}
    made["actions_bfloat16"] = actions("bfloat16")
    for name, value in made.items():
        for protocol in PROTOCOLS:
            data = pickle.dumps(value, protocol)
            (FOLDER / f"lerobot_{name}_{protocol}.pickle").write_bytes(data)
            print(f"{name} {protocol}: {len(data)} bytes")


if __name__ == "__main__":
    sys.exit(main())
