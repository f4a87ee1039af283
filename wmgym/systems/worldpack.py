"""WorldPack (Oshima et al. 2025): CDiT + trajectory packing + pose-scored memory retrieval.

    frames --autoencoder--> latents --> bank --+-- newest 1, 2, 8 frames at levels 0, 1, 2 ---+
                                               +-- 8 frames retrieved by pose at level 2 -----+--> CDiT --> next latent
    action, egomotion, noise level ------------------------------------------------------ adaLN-Zero --^

The ablation of section 6.3 is the same weights with another `memory`: "none" (four recent frames, as NWM), "packing",
"retrieval" (one recent and three retrieved), "worldpack".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from wmgym.kinematics import Displacement, kinematics
from wmgym.memory.packing import LAYOUTS, layout
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig
from wmgym.nets.cdit import SIZES, CDiT, CDiTConfig
from wmgym.nets.heads import HeadConfig, MotionHead, RewardHead
from wmgym.world_model import SamplerConfig, WorldModel


@dataclass(frozen=True)
class WorldPackConfig:
    system: str = "worldpack"
    world: str = "minecraft"  # its kinematics
    memory: str = "worldpack"  # a layout's name
    memory_budget: int = 512  # frames remembered
    pose_source: str = "learned"
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    net: CDiTConfig = field(default_factory=CDiTConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    outcomes: tuple[tuple[float, bool], ...] = ()  # of a step, as the reward head tells them apart: (reward, end); none: no head
    displacement: Displacement = field(default_factory=Displacement)  # world "recon" only: what its actions mean

    def __post_init__(self) -> None:
        layout(self.memory)
        if self.net.latent_shape != self.autoencoder.latent_shape:
            raise ValueError(f"net.latent_shape {self.net.latent_shape} differs from the autoencoder's {self.autoencoder.latent_shape}")
        moves = kinematics(self.world, self.displacement)
        for name in ("num_actions", "action_size"):
            if getattr(self.net, name) != getattr(moves, name):
                raise ValueError(f"net.{name} {getattr(self.net, name)} differs from the {getattr(moves, name)} of {self.world!r}")


# How far away a frame may have been seen and still help, where it is not what a block world's view spans. In a maze of 2 m corridors walls
# hide what is a few metres to the side.
RETRIEVAL = {"memory_maze": RetrievalConfig(sigma_s=4.0, sigma_l=1.5)}


def preset(
    size: str = "TINY",
    world: str = "minecraft",
    autoencoder: AutoencoderConfig | None = None,
    displacement: Displacement | None = None,
) -> WorldPackConfig:
    """A config by the network's size (`nets.cdit.SIZES`)."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    autoencoder = autoencoder or AutoencoderConfig()
    displacement = displacement or Displacement()
    moves = kinematics(world, displacement)
    net = CDiTConfig(
        latent_shape=autoencoder.latent_shape,
        num_actions=moves.num_actions,
        action_size=moves.action_size,
        field_of_view=moves.field_of_view,
        aspect=moves.aspect,
    )
    net = replace(net, **SIZES[size])  # type: ignore[arg-type]
    pose_source = "learned" if any(moves.uncertain) else "actions"
    retrieval = RETRIEVAL.get(world, RetrievalConfig())
    return WorldPackConfig(
        world=world, pose_source=pose_source, autoencoder=autoencoder, net=net, retrieval=retrieval, displacement=displacement
    )


def memory_of(config: WorldPackConfig, mode: str | None = None, device: torch.device | str = "cpu") -> TrajectoryMemory:
    """The memory of a mode (`packing.LAYOUTS`)."""
    return TrajectoryMemory(layout(mode or config.memory), config.retrieval, config.autoencoder.latent_shape, config.memory_budget, device)


def build(config: WorldPackConfig, device: torch.device | str = "cpu") -> WorldModel:
    """The model with fresh weights."""
    moves = kinematics(config.world, config.displacement)
    heads = HeadConfig(config.net.latent_shape, config.net.num_actions)
    model = WorldModel(
        Autoencoder(config.autoencoder),
        CDiT(config.net),
        MotionHead(heads) if any(moves.uncertain) else None,
        moves,
        (memory_of(config, device=device),),
        config.sampler,
        reward_head=RewardHead(heads, config.outcomes) if config.outcomes else None,
        pose_source=config.pose_source,
    )
    return model.to(device)


MODES = tuple(LAYOUTS)
