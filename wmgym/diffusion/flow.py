"""Rectified flow (Liu et al. 2022): straight lines from data (level 0) to noise (level 1), and their velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)
Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], level [B]) -> dx / dlevel


def _expand(level: Tensor, x: Tensor) -> Tensor:
    return level.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def corrupt(data: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """The point at `level` [B] on the line from data to noise."""
    t = _expand(level, data)
    return (1 - t) * data + t * noise


def target_velocity(data: Tensor, noise: Tensor) -> Tensor:
    """The training target of the network: the velocity from data to noise."""
    return noise - data


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Training levels from standard normal numbers [B], concentrated at medium levels (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * normal)


def levels(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """steps + 1 noise levels from 1 to 0. shift > 1 puts more of them at high noise (Esser et al. 2024, equation 23)."""
    if steps < 1:
        raise ValueError(f"denoise_steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    even = [1 - i / steps for i in range(steps + 1)]
    return tuple(shifted(t, shift) for t in even)


def shifted(level: Level, shift: float) -> Level:
    """A noise level in [0, 1], or a tensor of them, moved towards noise by shift > 1 (the same equation)."""
    return shift * level / (1 + (shift - 1) * level)
