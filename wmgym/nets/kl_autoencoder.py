"""The autoencoder of latent diffusion (Rombach et al. 2022), for published networks that work in its latents.

Reads what `diffusers` writes for an `AutoencoderKL` (a folder with config.json and diffusion_pytorch_model.safetensors, such as
stabilityai/sd-vae-ft-ema); submodules bear its names, so that a state dict fits as it is. The latent is the mean of the encoder's
Gaussian times `scaling_factor`; its standard deviation, far below the mean's scale, is not drawn from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wmgym.nets.autoencoder import to_float

AT_ONCE = 32  # frames: of 224 x 224 pixels one activation of so many takes about a gigabyte
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class KLAutoencoderConfig:
    """Defaults are Stable Diffusion's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    frame_size: int = 224

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.frame_size // self.factor
        return self.latent_channels, side, side


class _Resnet(nn.Module):
    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, before, 1e-6), nn.GroupNorm(groups, after, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, 1, 1), nn.Conv2d(after, after, 3, 1, 1)
        if before != after:
            self.conv_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.conv_shortcut(x) if self.conv1.in_channels != self.conv1.out_channels else x)


class _Attention(nn.Module):
    """One head over all cells."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        cells = self.group_norm(x).flatten(2).transpose(1, 2)
        gathered = F.scaled_dot_product_attention(self.to_q(cells), self.to_k(cells), self.to_v(cells))
        return x + self.to_out[0](gathered).transpose(1, 2).view_as(x)


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Resize(nn.Module):
    """Halve or double the sides; only the convolution has weights. Halving pads below and to the right, as the weights expect."""

    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, 2, 0) if down else nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, layers: int, groups: int, resize: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(before if i == 0 else after, after, groups) for i in range(layers))
        self.downsamplers = nn.ModuleList([_Resize(after, down=True)] if resize == "down" else [])
        self.upsamplers = nn.ModuleList([_Resize(after, down=False)] if resize == "up" else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class _Half(nn.Module):
    """Encoder or decoder: both go through their stages, the encoder to its middle last, the decoder first."""

    def __init__(self, config: KLAutoencoderConfig, *, encoder: bool) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        widths = widths if encoder else widths[::-1]
        inputs, outputs = (3, 2 * config.latent_channels) if encoder else (config.latent_channels, 3)
        layers, resize = (config.layers_per_block, "down") if encoder else (config.layers_per_block + 1, "up")
        pairs = list(zip((widths[0], *widths[:-1]), widths))
        stages = nn.ModuleList(_Stage(a, b, layers, groups, resize if i < len(pairs) - 1 else None) for i, (a, b) in enumerate(pairs))
        middle = _Middle(config.block_out_channels[-1], groups)
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, 1, 1)
        self.down_blocks, self.up_blocks = (stages, nn.ModuleList()) if encoder else (nn.ModuleList(), stages)
        self.mid_block = middle
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = part(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class KLAutoencoder(nn.Module):
    """encode: uint8 frames [..., H, W, 3] -> latents [..., C, h, w]; decode: the way back. As `Autoencoder` has them."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder, self.decoder = _Half(config, encoder=True), _Half(config, encoder=False)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, frames: Tensor) -> Tensor:
        parts = [self._mean(part) for part in frames.flatten(0, -4).split(AT_ONCE)]
        return (torch.cat(parts) * self.config.scaling_factor).unflatten(0, frames.shape[:-3])

    def _mean(self, frames: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(to_float(frames).to(self.quant_conv.weight.dtype))).chunk(2, 1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [..., C, h, w] -> float images [..., 3, H, W], about [-1, 1]."""
        raw = latents.flatten(0, -4).to(self.quant_conv.weight.dtype) / self.config.scaling_factor
        return torch.cat([self.decoder(self.post_quant_conv(part)) for part in raw.split(AT_ONCE)]).unflatten(0, latents.shape[:-3])


def load_kl_autoencoder(path: Path, frame_size: int) -> KLAutoencoder:
    """From a folder as `diffusers` writes it, or its weights file alone (then Stable Diffusion's config). ValueError if it does not fit."""
    folder, file = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise ValueError(f"{path}: no {WEIGHTS} there")
    told = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    known = {f.name for f in fields(KLAutoencoderConfig)}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items() if name in known}
    model = KLAutoencoder(KLAutoencoderConfig(**{**values, "frame_size": frame_size}))
    try:
        model.load_state_dict({_renamed(name): tensor for name, tensor in load_file(file).items()})
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold this autoencoder: {' '.join(str(error).split())[:300]}") from error
    return model


def _renamed(name: str) -> str:
    """Today's names of the attention's layers, for weights that were written before 2023."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return name
