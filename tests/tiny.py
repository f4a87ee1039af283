"""A whole world model that is small enough for tests of programs: 16 x 16 frames, untrained, its poses those of the kinematics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from wmgym.checkpoint import delta_name, load, save
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import echo, video
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


VIDEO_CODER = AutoencoderConfig(kind="pixels", factor=4, frame_size=16)


def tiny_video(folder: Path, *, depth: int = 2, chunk: int = 2, window: int = 8) -> Path:
    """A checkpoint of the video network, `video.safetensors`: untrained, but with every gate open."""
    net = VideoDiTConfig(VIDEO_CODER.latent_shape, width=32, depth=depth, heads=2, chunk=chunk, window=window, num_actions=10)
    config = replace(video.preset("MICRO", autoencoder=VIDEO_CODER), net=net, pose_source="actions", sampler=SamplerConfig("euler", 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = video.build(config).eval()
        for weight in model.net.parameters():
            torch.nn.init.normal_(weight, std=0.1) if not weight.any() else None
    save(folder / "video.safetensors", model, config)
    return folder / "video.safetensors"


def tiny_deltas(base: Path, families: Iterable[str], *, std: float = 0.1) -> None:
    """Deltas of Echo-Memory's families beside a video checkpoint: `std` is added to all that is trained."""
    loaded = load(base)
    for family in families:
        config = echo.on_video(loaded.config, (family,))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = echo.build(config).eval()
            model.load_state_dict({echo.SYSTEM.base_name(name): value for name, value in loaded.model.state_dict().items()}, strict=False)
            with torch.no_grad():
                for weight in model.net.delta.parameters():
                    weight.add_(std * torch.randn_like(weight))
        save(base.with_name(delta_name("echo", family, config.setting) + ".safetensors"), model, config, base=base.stem)
