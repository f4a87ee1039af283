"""What systems that generate latents have in common: config, sizes, and how the model is put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wmgym import settings
from wmgym.kinematics import Displacement, Kinematics
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig
from wmgym.nets.heads import HeadConfig, MotionHead, RewardHead
from wmgym.systems.system import System
from wmgym.world_model import SamplerConfig, WorldModel


@dataclass(frozen=True)
class LatentConfig:
    """The shared fields. A system gives defaults to `system`, `memory` and `net`. Sizes that do not fit raise `ValueError`."""

    system: str = ""
    setting: str = "minecraft"  # sets actions, kinematics and field of view
    memory: str = "none"
    memory_budget: int = 512  # greatest number of frames in memory
    pose_source: str = "learned"
    through_pixels: bool = False
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    net: Any = None  # the config of the system's network
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    outcomes: tuple[tuple[float, bool], ...] = ()  # classes of the reward head: (reward, end) of a step; empty: no head
    displacement: Displacement = field(default_factory=Displacement)  # for settings whose data define the actions

    def __post_init__(self) -> None:
        if self.net.latent_shape != self.autoencoder.latent_shape:
            raise ValueError(f"net.latent_shape {self.net.latent_shape} differs from the autoencoder's {self.autoencoder.latent_shape}")
        for name in ("num_actions", "action_size"):
            own, known = getattr(self.net, name), getattr(self.kinematics, name)
            if own != known:
                raise ValueError(f"net.{name} {own} differs from the {known} of setting {self.setting!r}")

    @property
    def kinematics(self) -> Kinematics:
        """Kinematics of the setting."""
        return settings.kinematics(self.setting, self.displacement)


def build_model(config: LatentConfig, network: Callable[[Any], Any], system: System) -> WorldModel:
    """The model of a system with new weights. network: from `config.net` to the network."""
    moves, heads = config.kinematics, HeadConfig(config.net.latent_shape, config.net.num_actions)
    autoencoder, net = Autoencoder(config.autoencoder), network(config.net)  # in this order a seed gives the same weights as in version 0.1
    return WorldModel(
        autoencoder,
        net,
        moves,
        system.settings(net, config),
        motion_head=MotionHead(heads) if any(moves.uncertain) else None,
        reward_head=RewardHead(heads, config.outcomes) if config.outcomes else None,
    )


def sizes(autoencoder: AutoencoderConfig, moves: Kinematics) -> dict[str, Any]:
    """What follows for a network, as keywords of its config."""
    return {
        "latent_shape": autoencoder.latent_shape,
        "num_actions": moves.num_actions,
        "action_size": moves.action_size,
        "field_of_view": moves.field_of_view,
        "aspect": moves.aspect,
    }


def pose_source(moves: Kinematics) -> str:
    """Where dreamed poses come from: learned, if the world may change what an action does to the pose."""
    return "learned" if any(moves.uncertain) else "actions"
