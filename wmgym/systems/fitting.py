"""How a network's sizes follow from its autoencoder and its setting, for the configs of systems that generate latents."""

from __future__ import annotations

from typing import Any

from wmgym.kinematics import Kinematics
from wmgym.nets.autoencoder import AutoencoderConfig


def sizes(autoencoder: AutoencoderConfig, moves: Kinematics) -> dict[str, Any]:
    """Keywords of a network's config."""
    return {
        "latent_shape": autoencoder.latent_shape,
        "num_actions": moves.num_actions,
        "action_size": moves.action_size,
        "field_of_view": moves.field_of_view,
        "aspect": moves.aspect,
    }


def check_fits(net: Any, autoencoder: AutoencoderConfig, moves: Kinematics, setting: str) -> None:
    """ValueError if a network's config does not fit its autoencoder, or the actions of its setting."""
    if net.latent_shape != autoencoder.latent_shape:
        raise ValueError(f"net.latent_shape {net.latent_shape} differs from the autoencoder's {autoencoder.latent_shape}")
    for name in ("num_actions", "action_size"):
        own, known = getattr(net, name), getattr(moves, name)
        if own != known:
            raise ValueError(f"net.{name} {own} differs from the {known} of setting {setting!r}")


def pose_source(moves: Kinematics) -> str:
    """Where dreamed poses come from: learned, if the world may change what an action does to the pose."""
    return "learned" if any(moves.uncertain) else "actions"
