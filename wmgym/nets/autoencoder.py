"""Frames to latents and back: a small convolutional autoencoder, or plain pixel patches.

`encode` normalises latents to zero mean and unit scale per channel with statistics of the training frames. So networks and noise levels
can assume unit scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.layers import ResidualConv


class FrameCoder(Protocol):
    """Frames to latents and back."""

    @property
    def frame_size(self) -> int:
        """Side of a frame in pixels."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [..., H, W, 3] -> latents [..., C, h, w] of about unit scale."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [..., C, h, w] -> float images [..., 3, H, W], about [-1, 1]."""
        ...


@dataclass(frozen=True)
class AutoencoderConfig:
    """kind "conv": learned; kind "pixels": factor x factor pixels become channels, without loss."""

    kind: str = "conv"
    factor: int = 8  # pixels per latent cell along a side
    channels: int = 12  # latent channels (conv only)
    widths: tuple[int, ...] = (32, 64, 96)  # channels, one per halving of the side
    frame_size: int = 64

    def __post_init__(self) -> None:
        if self.kind not in ("conv", "pixels"):
            raise ValueError(f"kind must be 'conv' or 'pixels', got {self.kind!r}")
        if self.kind == "conv" and 2 ** len(self.widths) != self.factor:
            raise ValueError(f"factor must be 2 ** len(widths) = {2 ** len(self.widths)}, got {self.factor}")
        if self.frame_size % self.factor:
            raise ValueError(f"frame_size must be a multiple of factor {self.factor}, got {self.frame_size}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w."""
        side = self.frame_size // self.factor
        return (self.channels if self.kind == "conv" else 3 * self.factor**2, side, side)


def to_float(frames: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [..., 3, H, W] in [-1, 1] -> uint8 [..., H, W, 3], rounded to the nearest level."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()


class Autoencoder(nn.Module):
    """encode: uint8 frames [..., H, W, 3] -> latents [..., C, h, w]; decode: latents -> images."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.latent_shape = config.frame_size, config.latent_shape
        channels = config.latent_shape[0]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        if config.kind == "pixels":
            self.encoder: nn.Module = nn.PixelUnshuffle(config.factor)
            self.decoder: nn.Module = nn.PixelShuffle(config.factor)
            return
        down: list[nn.Module] = []
        before = 3
        for width in config.widths:
            down += [nn.Conv2d(before, width, 4, 2, 1), ResidualConv(width)]
            before = width
        down += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, channels, 3, 1, 1)]
        up: list[nn.Module] = [nn.Conv2d(channels, before, 3, 1, 1), ResidualConv(before)]
        for width in (*config.widths[-2::-1], config.widths[0]):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(before, width, 3, 1, 1), ResidualConv(width)]
            before = width
        up[-1:] = [nn.SiLU()]  # no residual block at full resolution: it would cost more than all other layers
        up += [nn.Conv2d(before, 3, 3, 1, 1)]
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)

    def encode(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        raw = self.encoder(to_float(frames.flatten(0, -4)).to(self.mean.dtype))
        return ((raw - self.mean[:, None, None]) / self.std[:, None, None]).unflatten(0, lead)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [..., C, h, w] -> float images [..., 3, H, W], about [-1, 1]."""
        lead = latents.shape[:-3]
        raw = latents.flatten(0, -4).to(self.mean.dtype) * self.std[:, None, None] + self.mean[:, None, None]
        return self.decoder(raw).unflatten(0, lead)

    def loss(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss of uint8 [B, H, W, 3] with `noise` [B, C, h, w] added to the raw latents -> (loss, mean squared error).

        The noise trains the decoder to give similar images for similar latents, so that a sampler's small errors stay small in the image.
        """
        target = to_float(frames)
        raw = self.encoder(target)
        output = self.decoder(raw + noise).float()
        squared = F.mse_loss(output, target)
        return F.l1_loss(output, target) + 0.5 * squared + 1e-3 * raw.float().square().mean(), squared
