"""Small policies with random weights, saved by LeRobot itself, and observations for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.messages import Instructions, Observation, Picture

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATE = tuple(f"{joint}.pos" for joint in JOINTS)
CAMERA, SIDE = "front", 96
SHAPE = (120, 160, 3)
"""Of the robot's pictures; the policies want 96x96."""
ROWS = 20


def save(
    kind: str,
    folder: Path,
    seed: int = 0,
    spread: float = 20.0,
    camera: str = f"observation.images.{CAMERA}",
    around: Sequence[float] = (-3.0, -1.8, -0.6, 0.6, 1.8, 3.0),
    blind_to_state: bool = False,
    **options: Any,
) -> Path:
    """A policy for `STATE` and one camera; actions of about `spread` around `around`."""
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors

    torch.manual_seed(seed)
    config = make_policy_config(
        kind,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (len(STATE),)),
            camera: PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (len(STATE),))},
        device="cpu",
        push_to_hub=False,
        **options,
    )
    if kind == "tdmpc":  # its own checks want actions of -1 to 1
        config.normalization_mapping["ACTION"] = NormalizationMode.MIN_MAX
    policy = get_policy_class(kind)(config).eval()
    if kind == "act":  # untrained, its rows are nearly alike
        policy.model.decoder_pos_embed.weight.data *= 5
        policy.model.action_head.weight.data *= 2
    size = len(STATE)
    mean = torch.tensor(around)
    row = {"mean": mean, "std": torch.full((size,), spread)}
    row |= {"min": mean - spread, "max": mean + spread}
    seen = {key: 1e9 + value for key, value in row.items()} if blind_to_state else row
    seen = seen | {"mean": mean}
    pixel = {"mean": torch.full((3, 1, 1), 0.45), "std": torch.full((3, 1, 1), 0.25)}
    pixel |= {"min": torch.zeros(3, 1, 1), "max": torch.ones(3, 1, 1)}
    stats = {"observation.state": seen, "action": row, camera: pixel}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return folder


def act(folder: Path, **options: Any) -> Path:
    """A small ACT."""
    small: dict[str, Any] = {"chunk_size": ROWS, "n_action_steps": ROWS, "dim_model": 32}
    small |= {"n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "n_decoder_layers": 1}
    small |= {"use_vae": False, "pretrained_backbone_weights": None}
    return save("act", folder, **small | options)


def vqbet(folder: Path, **options: Any) -> Path:
    """A small VQ-BeT, which looks three steps back."""
    small: dict[str, Any] = {"n_obs_steps": 3, "n_action_pred_token": 2, "action_chunk_size": 4}
    small |= {"crop_shape": None, "pretrained_backbone_weights": None, "use_group_norm": True}
    small |= {"gpt_hidden_dim": 32, "gpt_n_layer": 1, "gpt_n_head": 2, "gpt_output_dim": 32}
    small |= {"gpt_input_dim": 32, "vqvae_n_embed": 4, "vqvae_embedding_dim": 8}
    small |= {
        "vqvae_enc_hidden_dim": 8,
        "spatial_softmax_num_keypoints": 4,
        "offset_loss_weight": 1.0,
    }
    return save("vqbet", folder, **small | options)


def tdmpc(folder: Path, **options: Any) -> Path:
    """A small TD-MPC, which plans from where its last plan ended; it knows one picture's name."""
    small: dict[str, Any] = {
        "camera": "observation.image",
        "horizon": 4,
        "n_action_steps": 4,
        "latent_dim": 8,
        "q_ensemble_size": 2,
    }
    small |= {"image_encoder_hidden_dim": 4, "state_encoder_hidden_dim": 8, "mlp_dim": 8}
    small |= {
        "n_gaussian_samples": 8,
        "n_pi_samples": 3,
        "n_elites": 3,
        "cem_iterations": 2,
        "n_action_repeats": 1,
    }
    return save("tdmpc", folder, **small | options)


def diffusion(folder: Path, **options: Any) -> Path:
    """A small diffusion policy, which looks two steps back."""
    small: dict[str, Any] = {"horizon": 8, "n_action_steps": 6, "down_dims": (16, 32)}
    small |= {"pretrained_backbone_weights": None, "num_inference_steps": 3, "n_groups": 4}
    small |= {"crop_shape": None, "spatial_softmax_num_keypoints": 4}
    small |= {"diffusion_step_embed_dim": 16}
    return save("diffusion", folder, **small | options)


def instructions(kind: str, folder: Path, **more: Any) -> Instructions:
    """What a client of such a robot asks for."""
    given: dict[str, Any] = {"actions_per_chunk": ROWS, "state_names": STATE}
    given |= {"cameras": {CAMERA: SHAPE}}
    return Instructions(kind, str(folder), **given | more)


def state(number: int) -> np.ndarray:
    """State values that differ for every number."""
    return np.random.default_rng(number).uniform(-30, 30, len(STATE)).astype(np.float32)


def picture(number: int) -> np.ndarray:
    """A picture that differs for every number; neither noise nor flat."""
    rng = np.random.default_rng(1000 + number)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(20, axis=0).repeat(20, axis=1))


def observation(number: int, timestep: int = 0, task: str = "pick") -> Observation:
    """The number-th observation."""
    return Observation(
        timestep, 100.0 + number, True, state(number), {CAMERA: Picture(picture(number))}, task
    )
