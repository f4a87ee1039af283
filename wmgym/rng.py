"""Counter-based random numbers: one key per row, no generator state, equal for every batch size.

A row's numbers are a pure function of its key and a counter (Threefry-2x32 with 20 rounds: Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"), computed on the device with elementwise integer operations only. So lane i of a vector env
draws the same numbers as the single env with its seed. A key is int64 `[2]`, two 32-bit words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Tensor, counter: Tensor) -> Tensor:
    """Hash counters with keys: int64 words [..., 2] and [..., 2] (each in [0, 2**32)) -> int64 words [..., 2]."""
    return _threefry(key, *counter.unbind(-1))


def _threefry(key: Tensor, x0: Tensor | int, x1: Tensor | int) -> Tensor:
    """The same for a counter in two words, which are numbers if it is one for all keys."""
    k0, k1 = key.unbind(-1)
    keys = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0, x1 = (x0 + keys[0]) & _MASK, (x1 + keys[1]) & _MASK
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x0 = (x0 + x1) & _MASK
            x1 = ((x1 << r) | (x1 >> (32 - r))) & _MASK
            x1 = x1 ^ x0
        x0 = (x0 + keys[(group + 1) % 3]) & _MASK
        x1 = (x1 + keys[(group + 2) % 3] + group + 1) & _MASK
    return torch.stack([x0, x1], -1)


def make_keys(seeds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """One key per seed (0 <= seed < 2**64): int64 [B, 2]."""
    if any(not 0 <= s < 2**64 for s in seeds):
        raise ValueError(f"seeds must be in [0, 2**64), got {[s for s in seeds if not 0 <= s < 2**64][0]}")
    return torch.tensor([[s >> 32, s & _MASK] for s in seeds], dtype=torch.int64, device=device)


def fold(keys: Tensor, number: int) -> Tensor:
    """New keys [B, 2] derived from the old ones and a number. Different numbers give independent streams."""
    return _threefry(keys, number & _MASK, 1 << 31)


def next_keys(keys: Tensor) -> Tensor:
    """The keys of the next step."""
    return fold(keys, 0x6E657874)


def bits(keys: Tensor, n: int) -> Tensor:
    """n pairs of 32-bit words per row: int64 [B, n, 2]."""
    index = torch.arange(n, dtype=torch.int64, device=keys.device)
    counter = torch.stack([index, torch.zeros_like(index)], -1)
    return threefry(keys[:, None], counter[None].expand(len(keys), n, 2))


def uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in (0, 1), float32 [B, *shape]."""
    n = math.prod(shape)
    words = bits(keys, -(-n // 2)).flatten(1)[:, :n]
    # the largest word would round to 1 in float32, which is outside of the interval
    return ((words >> 8).float() + 0.5).mul_(2.0**-24).clamp_(max=1 - 2.0**-24).view(-1, *shape)


def noise(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 [B, *shape] (Box-Muller)."""
    n = math.prod(shape)
    pairs = ((bits(keys, -(-n // 2)) >> 8).float() + 0.5).mul_(2.0**-24)
    radius = (-2 * pairs[..., 0].log()).sqrt()
    angle = 2 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)[:, :n].reshape(-1, *shape)
