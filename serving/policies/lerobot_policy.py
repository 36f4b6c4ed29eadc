"""LeRobot's own policies (act, diffusion, smolvla, pi0, …) by type and path, for many sessions."""

from __future__ import annotations

import importlib.util

from serving.messages import Instructions, ServingError
from serving.served import ServedPolicy

__all__ = ["load"]


def load(instructions: Instructions) -> ServedPolicy:
    """Load the policy that is named, on the device that is named, and predict once to try it.

    A hub's name works where the checkpoint is in the hub's cache; whether more may be downloaded is
    the caller's affair (HF_HUB_OFFLINE, before anything of the hub is imported).

    Args:
        instructions: type, path and device are used; the rest belongs to the session (`admit`).

    Raises:
        ServingError: not_found without such a checkpoint; bad_policy for what cannot be used.
    """
    if importlib.util.find_spec("lerobot") is None:
        raise ServingError(
            "bad_policy",
            f"policy type {instructions.policy_type!r} needs LeRobot on the server: "
            "pip install '.[lerobot]' (Python 3.12)",
        )
    # Here, because a server without LeRobot may have no PyTorch either.
    from serving.policies.lerobot_checkpoint import open_checkpoint
    from serving.policies.lerobot_chunks import LeRobotPolicy

    return LeRobotPolicy(
        open_checkpoint(instructions.policy_type, instructions.path, instructions.device)
    )
