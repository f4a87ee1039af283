"""Rotary phases of tokens: time of the frame, row and column in the frame, direction in the world, and position of the eye.

The dimensions of a head are paired, and each pair is rotated by one phase. So attention between a query and a key depends only on the
difference of their phases: on relative time, and with a camera on relative pose. Phases are arguments, so keys can be cached before
rotation and rotated when they are read.

Azimuth has whole waves per turn, so phases are continuous at 2 pi; the highest frequency resolves about one token. Eye positions have
wavelengths from 2 m to twice the world's extent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.constants import constant
from wmgym.geometry import token_rays

SHORTEST_EYE = 2.0  # metres
TIME_BASE, SPACE_BASE = 10_000.0, 100.0


@dataclass(frozen=True)
class Pairs:
    """Number of a head's pairs for each quantity."""

    time: int
    row: int
    column: int
    azimuth: int = 0
    elevation: int = 0
    eye: int = 0  # for each of x and y

    @property
    def place(self) -> int:
        """Pairs of time, row and column, which come first."""
        return self.time + self.row + self.column

    @property
    def total(self) -> int:
        return self.place + self.azimuth + self.elevation + 2 * self.eye


def share_pairs(pairs: int, *, pose: bool) -> Pairs:
    """Divide the pairs of a head. With pose, a head of 64 dimensions has 8 time, 4 + 4 place, 7 azimuth, 3 elevation, 3 + 3 eye."""
    if pose and pairs < 8:
        raise ValueError(f"pose rotation needs heads of at least 16 dimensions, got {2 * pairs}")
    if not pose:
        side = 5 * pairs // 16  # as in Wan 2.1: of 64 pairs 22 for time, 21 for rows, 21 for columns
        return Pairs(pairs - 2 * side, side, side)
    small = max(1, 3 * pairs // 32)
    time, side = max(1, pairs // 4), max(1, pairs // 8)
    return Pairs(time, side, side, pairs - time - 2 * side - 3 * small, small, small)


def whole_waves(count: int, highest: int) -> tuple[int, ...]:
    """`count` different whole numbers from 1 to `highest`, roughly geometric."""
    if highest < count:
        highest = count
    found: list[int] = []
    for k in range(count):
        wanted = round(highest ** (k / max(1, count - 1)))
        found.append(max(wanted, found[-1] + 1 if found else 1))
    excess = found[-1] - highest  # positive if equal neighbours had to be increased
    return tuple(found) if excess <= 0 else tuple(range(1, count)) + (highest,)


@dataclass(frozen=True)
class PhaseConfig:
    """Constants of the phases of a network's tokens."""

    pairs: Pairs
    grid: tuple[int, int]  # rows, columns of tokens
    field_of_view: float  # radians, vertical
    aspect: float
    extent: float  # size of the world in metres

    @property
    def highest_wave(self) -> int:
        """Number of waves per turn whose half period is the width of a token."""
        across = 2 * math.atan(math.tan(self.field_of_view / 2) * self.aspect)
        return max(1, round(math.pi * self.grid[1] / across))


def place_phases(times: Tensor, config: PhaseConfig) -> Tensor:
    """Phases of time, row and column: times [B, T] -> [B, T, N, place pairs], in radians."""
    pairs, (rows, columns) = config.pairs, config.grid
    device = times.device

    def waves(count: int, base: float) -> Tensor:
        return base ** (-torch.arange(count, dtype=torch.float32, device=device) / max(1, count))

    time = times.float()[..., None, None] * waves(pairs.time, TIME_BASE)  # [B, T, 1, t]
    row = torch.arange(rows, device=device).float()[:, None] * waves(pairs.row, SPACE_BASE)
    column = torch.arange(columns, device=device).float()[:, None] * waves(pairs.column, SPACE_BASE)
    grid = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], -1).flatten(0, 1)  # [N, r + c]
    shape = (*times.shape, rows * columns)
    return torch.cat([time.expand(*shape, -1), grid.expand(*shape, -1)], -1)


def pose_phases(poses: Tensor, origin: Tensor, config: PhaseConfig) -> Tensor:
    """Phases of world direction and eye position: poses [B, T, 5] and a reference [B, 5] -> [B, T, N, pose pairs], in radians.

    Only positions are relative to the reference, to keep them small. A constant shift does not change differences of phases.
    """
    pairs = config.pairs
    rays = token_rays(poses, torch.zeros_like(poses[:, 0, 0]), *config.grid, config.field_of_view, config.aspect)
    azimuth = torch.atan2(rays[..., 1], rays[..., 0])
    elevation = torch.atan2(rays[..., 2], rays[..., :2].norm(dim=-1))
    eye = poses[..., None, :2] - origin[:, None, None, :2]  # [B, T, 1, 2]

    def whole(count: int) -> Tensor:
        return constant(whole_waves(count, config.highest_wave), torch.float32, poses.device)

    longest = 2 * config.extent
    steps = torch.arange(pairs.eye, dtype=torch.float32, device=poses.device) / max(1, pairs.eye - 1)
    lengths = SHORTEST_EYE * (longest / SHORTEST_EYE) ** steps
    around = eye[..., None] * (2 * math.pi / lengths)  # [B, T, 1, 2, e]
    return torch.cat(
        [
            azimuth[..., None] * whole(pairs.azimuth),
            elevation[..., None] * whole(pairs.elevation),
            around.flatten(-2).expand(*azimuth.shape, -1),
        ],
        -1,
    )
