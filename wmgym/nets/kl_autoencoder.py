"""The autoencoder of latent diffusion (Rombach et al. 2022), for published networks that use its latents: diffusers' `AutoencoderKL`.

The latent is the mean of the encoder's Gaussian times `scaling_factor`. The Gaussian is not sampled: its standard deviation is far below
the scale of the mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from wmgym.extras import need
from wmgym.nets.autoencoder import to_float

AT_ONCE = 32  # frames; at 224 x 224 pixels one activation of 32 frames takes about a gigabyte
WEIGHTS = "diffusion_pytorch_model.safetensors"


def autoencoder_kl() -> Any:
    """The class from diffusers. Without the package, `ImportError` names the extra."""
    need("diffusers", "Stable Diffusion's autoencoder needs")
    from diffusers import AutoencoderKL

    return AutoencoderKL


class KLAutoencoder(nn.Module):
    """A `nets.autoencoder.FrameCoder` that wraps diffusers' `AutoencoderKL`."""

    def __init__(self, model: Any, frame_size: int) -> None:
        super().__init__()
        self.model, self.frame_size = model, frame_size
        factor = 2 ** (len(model.config.block_out_channels) - 1)  # pixels per latent cell along a side
        if frame_size % factor:
            raise ValueError(f"frame_size must be a multiple of {factor}, got {frame_size}")
        self.latent_shape = (int(model.config.latent_channels), frame_size // factor, frame_size // factor)

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [..., H, W, 3] -> latents [..., C, h, w]."""
        parts = [self.model.encode(to_float(part).to(self.model.dtype)).latent_dist.mode() for part in frames.flatten(0, -4).split(AT_ONCE)]
        return (torch.cat(parts) * self.model.config.scaling_factor).unflatten(0, frames.shape[:-3])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [..., C, h, w] -> float images [..., 3, H, W], about [-1, 1]."""
        raw = latents.flatten(0, -4).to(self.model.dtype) / self.model.config.scaling_factor
        return torch.cat([self.model.decode(part).sample for part in raw.split(AT_ONCE)]).unflatten(0, latents.shape[:-3])


def load_kl_autoencoder(folder: Path, frame_size: int) -> KLAutoencoder:
    """Load from a folder in diffusers' format (config.json and weights). ValueError if a file is missing or does not fit."""
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: there is no {name}")
    kind = autoencoder_kl()
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold an autoencoder that diffusers can read: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder / WEIGHTS} does not hold this autoencoder: {missing[0]!r} is missing")
    if extra := sorted(report["unexpected_keys"]):
        raise ValueError(f"{folder / WEIGHTS} does not hold this autoencoder: config.json has no {extra[0]!r}")
    return KLAutoencoder(model.eval(), frame_size)
