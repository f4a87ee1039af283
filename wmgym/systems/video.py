"""The causal video network without a long-term memory: the base of WorldTrace, CoME and Echo-Memory.

    frames --autoencoder--> latents --> chunks of F --> VideoDiT --> next chunk
                                           ^ keys and values of the recent chunks
    action, egomotion, heading, noise level -- adaLN-Zero --^

Its only memory, "none", is the recent window: the newest L_train - 1 chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from wmgym import settings
from wmgym.kinematics import Displacement
from wmgym.memory.coverage import CoverageConfig
from wmgym.memory.slots import SlotMemory
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.video_dit import SIZES, VideoDiT, VideoDiTConfig
from wmgym.systems.latent import LatentConfig, build_model, pose_source, sizes
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.world_model import WorldModel


@dataclass(frozen=True)
class VideoConfig(LatentConfig):
    system: str = "video"
    net: VideoDiTConfig = field(default_factory=VideoDiTConfig)


def preset(
    size: str = "TINY",
    setting: str = "minecraft",
    autoencoder: AutoencoderConfig | None = None,
    displacement: Displacement | None = None,
    **net: object,
) -> VideoConfig:
    """A config with a network size from `nets.video_dit.SIZES`. `net`: other fields of the network's config."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    autoencoder, displacement = autoencoder or AutoencoderConfig(), displacement or Displacement()
    place, moves = settings.get(setting), settings.kinematics(setting, displacement)
    camera = {"pose_rotary": place.has_camera, "extent": place.extent}
    config = VideoDiTConfig(**{**sizes(autoencoder, moves), **camera, **SIZES[size], **net})
    return VideoConfig(setting=setting, pose_source=pose_source(moves), autoencoder=autoencoder, net=config, displacement=displacement)


def build(config: VideoConfig, system: System | None = None) -> WorldModel:
    """The model with new weights, for a system based on this network."""
    return build_model(config, VideoDiT, system or SYSTEM)


def taken_over(config: VideoConfig) -> dict[str, Any]:
    """What the config of a system on a video network's weights takes over from the network's own."""
    return {f.name: getattr(config, f.name) for f in fields(VideoConfig) if f.name not in ("system", "memory")}


def chunk_sizes(host: MemoryHost) -> dict[str, Any]:
    """Sizes of a network's keys and values, as keywords of its memories."""
    net: VideoDiTConfig = host.config.net
    dtype = next(host.network.parameters()).dtype  # type: ignore[attr-defined]  # a Network is a module
    counts = {"layers": net.depth, "chunk": net.chunk, "tokens": net.tokens, "heads": net.heads, "head_width": net.width // net.heads}
    return {**counts, "dtype": dtype}


def coverage_of(net: VideoDiTConfig) -> CoverageConfig:
    """How views of this network's frames cover one another."""
    return CoverageConfig(net.field_of_view, net.aspect)


def recent_window(host: MemoryHost) -> tuple[SlotMemory, ...]:
    """The newest L_train - 1 chunks."""
    return (SlotMemory(**chunk_sizes(host), recent=host.config.net.window - 1),)


SYSTEM = System(
    name="video",
    config=VideoConfig,
    build=build,
    memories={"none": MemoryChoice(recent_window)},
    default_memory="none",
    train="wmgym.train.video:TrainArgs:train",
    synthetic="wmgym.train.video:synthetic",
    denoising="wmgym.train.video:denoising",
)
