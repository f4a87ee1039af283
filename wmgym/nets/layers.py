"""Small layers shared by the networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MUON_LEAST = 16  # smaller matrices, such as tables of nine rows, are not maps between hidden layers


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The matrices between hidden layers of a module, which Muon optimises (Jordan et al. 2024)."""
    return [p for p in module.parameters() if p.ndim == 2 and min(p.shape) > MUON_LEAST]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN (Peebles & Xie 2023, figure 3)."""
    return x * (1 + scale) + shift


def sinusoid(x: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of x [...] at geometric frequencies: [..., width]."""
    frequencies = torch.exp(-math.log(longest) * torch.arange(width // 2, device=x.device) / (width // 2))
    angles = x.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def fourier(x: Tensor, octaves: int) -> Tensor:
    """x [..., n] with sines and cosines of pi * 2**k * x for k < octaves: [..., n * (1 + 2 * octaves)]."""
    scaled = x[..., None] * (math.pi * 2.0 ** torch.arange(octaves, device=x.device))
    return torch.cat([x, scaled.sin().flatten(-2), scaled.cos().flatten(-2)], -1)


def squash(x: Tensor, straight: float = 2.0) -> Tensor:
    """Identity up to `straight`, logarithmic beyond: values of one step are unchanged, and a jump over 64 steps stays in range."""
    return x.clamp(-straight, straight) + x.sign() * (x.abs() - straight).clamp(min=0).log1p()


class Mlp(nn.Sequential):
    """Two linear layers with a nonlinearity between them."""

    def __init__(self, width_in: int, hidden: int, width_out: int, *, gelu: bool = False) -> None:
        super().__init__(nn.Linear(width_in, hidden), nn.GELU(approximate="tanh") if gelu else nn.SiLU(), nn.Linear(hidden, width_out))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over [B, tokens, heads, d] tensors; mask bool marks the keys that exist: [B, keys], or [B, heads, tokens, keys]. Returns
    [B, tokens, heads * d]."""
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class ResidualConv(nn.Module):
    """Two 3 x 3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
