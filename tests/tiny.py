"""A whole world model that is small enough for tests of programs: 16 x 16 frames, untrained, its poses those of the kinematics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from wmgym.checkpoint import save
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build
from wmgym.world_model import SamplerConfig

CODER = AutoencoderConfig(widths=(8, 8), factor=4, channels=3, frame_size=16)
CONFIG = WorldPackConfig(
    memory="worldpack",
    pose_source="actions",
    autoencoder=CODER,
    net=CDiTConfig(latent_shape=CODER.latent_shape, width=16, depth=1, heads=2),
    sampler=SamplerConfig("euler", 1, 1.0),
)


def tiny_checkpoint(folder: Path, chunk: int = 1, seed: int = 0) -> str:
    """A checkpoint of it on the disk; another seed's weights go to the same path."""
    file = folder / f"tiny-{chunk}.safetensors"
    config = replace(CONFIG, net=replace(CONFIG.net, chunk=chunk))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(config)
        for weight in model.parameters():
            if not weight.any():  # gates that begin at zero would hide the memory
                torch.nn.init.normal_(weight, std=0.02)
    save(file, model.eval(), config)
    return str(file)
