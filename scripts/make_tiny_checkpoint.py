"""Make a small policy with random weights, so that everything runs without a download.

It has the architecture of the real one and about five million parameters, and has learned nothing:
its actions stay within a few degrees of a home pose and change a little with pictures and touch.

    python scripts/make_tiny_checkpoint.py --out tiny
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver")

import cv2
import numpy as np

from policies.base import PolicyError
from policies.qwen_vla import save_policy
from policies.qwen_vla.tiny import HOME_DEG, Calibration, make_tiny_policy

_SCENES = 24
_WINDOWS_A_SCENE = 4


@dataclass(frozen=True, slots=True)
class Options:
    """Make the small policy."""

    out: Path
    """Folder for the checkpoint; made where it is not there."""
    seed: int = 0
    """Seed of the random weights; the same seed gives the same bytes."""
    home_deg: tuple[float, float, float, float, float, float] | None = None
    """Joint angles in degrees around which the actions vary. Default: straight, wrist bent by 60;
    with --on-rig, where the rig's needle points at the port."""
    spread_deg: float = 1.0
    """Standard deviation of each joint, in degrees; never more than six times as far from home."""
    on_rig: bool = False
    """Centre the actions on what the simulated rig shows, rather than on made-up pictures."""


def main() -> int:
    """Make the policy and write it; the exit code."""
    options = cli.parse(Options)
    home: tuple[float, ...] = options.home_deg or HOME_DEG
    calibration = None
    try:
        if options.on_rig:
            cli.needs("receiver", "sim")
            from sim.layout import HOME_DEG as RIG_HOME_DEG

            home, calibration = options.home_deg or RIG_HOME_DEG, _seen_on_rig(options.seed)
        policy = make_tiny_policy(
            seed=options.seed,
            home_deg=home,
            spread_deg=options.spread_deg,
            calibration=calibration,
        )
        save_policy(policy, options.out)
    except (PolicyError, ValueError, RuntimeError) as error:
        cli.fail(str(error))
    print(f"{options.out}: {policy.spec.parameters:,} parameters, random weights")
    return 0


def _seen_on_rig(seed: int) -> Calibration:
    """What cameras and sensor give while the arm stirs about the rig's home, for several ports."""
    from sim.ascan import synthesize
    from sim.layout import HOME_DEG, RigConfig
    from sim.rendering import RigRenderer
    from sim.rig import InsertionRig

    rng, config = np.random.default_rng(seed), RigConfig()
    rig = InsertionRig(config, seed)
    second = round(config.physics_hz)
    scenes, windows = [], []
    with RigRenderer(rig.model, 640, 360) as renderer:
        for number in range(_SCENES):
            rig.reset(seed + number)
            rig.command_joints(np.array(HOME_DEG) + rng.normal(0.0, 1.0, 6))
            rig.step(second // 2)
            pictures = renderer.render(rig.data)
            scenes.append({v: cv2.cvtColor(p, cv2.COLOR_BGR2RGB) for v, p in pictures.items()})
            for _ in range(_WINDOWS_A_SCENE):
                readings = []
                for _ in range(65):
                    rig.step(2)
                    readings.append(rig.read())
                force = np.array([[r.force_n] for r in readings])
                scans = synthesize([r.distance_mm for r in readings], rng)
                windows.append(np.concatenate((force, scans), axis=1))
    # One window of every scene, then the next of every scene: as the scenes are repeated.
    order = [s * _WINDOWS_A_SCENE + w for w in range(_WINDOWS_A_SCENE) for s in range(_SCENES)]
    return Calibration(scenes, np.stack([windows[i] for i in order]).astype(np.float32))


if __name__ == "__main__":
    sys.exit(main())
