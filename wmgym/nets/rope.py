"""Rotary position embedding over time (Su et al. 2021). Positions are arguments, so they can be true distances or ranks."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., width / 2] for rotating vectors of `width` dimensions to temporal positions [...] in frames."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = positions.float()[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] dimensions of x [..., d], paired by halves. The other dimensions are unchanged.

    A score q . k of vectors rotated by p and p' depends only on p - p'.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
