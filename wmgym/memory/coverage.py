"""Greedy coverage: choose the past views that together show most of a target view.

Points are placed along the rays of the target view at a few depths. A past view shows a point well if it is near the point and looks from
the same side. Views are chosen one at a time, each for its gain over the earlier ones, so that slots do not hold copies of one view
(facility location; the greedy choice reaches at least 1 - 1/e of the optimum, Nemhauser et al. 1978).

All operations are per row, and values are rounded before they are compared, so a choice does not depend on the batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.constants import constant
from wmgym.geometry import token_rays

_GRID = 1024  # gains are rounded to 1/1024 of a point


@dataclass(frozen=True)
class CoverageConfig:
    field_of_view: float = 1.309  # radians, vertical
    aspect: float = 1.0  # width of the view divided by its height
    rays: int = 4  # along each side of the target view
    depths: tuple[float, ...] = (2.0, 5.0, 12.0)  # metres along each ray

    def __post_init__(self) -> None:
        if self.rays < 1 or not self.depths or min(self.depths) <= 0:
            raise ValueError(f"rays and depths must be positive, got {self.rays} and {self.depths}")


def target_points(poses: Tensor, config: CoverageConfig) -> tuple[Tensor, Tensor]:
    """World points in the views from poses [B, Q, 5], and the directions to them: both [B, P, 3]."""
    rays = token_rays(poses, torch.zeros_like(poses[:, 0, 0]), config.rays, config.rays, config.field_of_view, config.aspect)
    direction, eye = rays[..., None, :3], rays[..., None, 3:]  # [B, Q, R, 1, 3]
    depths = constant(config.depths, poses.dtype, poses.device)[:, None]
    points = eye + direction * depths
    return points.flatten(1, 3), direction.expand_as(points).flatten(1, 3)


def shown(points: Tensor, directions: Tensor, past: Tensor, config: CoverageConfig) -> Tensor:
    """How well views from past poses [B, S, 5] show points [B, P, 3] that the target sees in `directions`: [B, S, P] in [0, 1]."""
    away = points[:, None] - past[:, :, None, :3]  # [B, S, P, 3]
    yaw, pitch = past[..., 3, None], past[..., 4, None]
    ahead = away[..., 0] * yaw.cos() + away[..., 1] * yaw.sin()
    left = away[..., 1] * yaw.cos() - away[..., 0] * yaw.sin()
    forward = ahead * pitch.cos() + away[..., 2] * pitch.sin()
    up = away[..., 2] * pitch.cos() - ahead * pitch.sin()
    tan = math.tan(config.field_of_view / 2)
    inside = (forward > 0) & (left.abs() <= forward * tan * config.aspect) & (up.abs() <= forward * tan)
    distance = away.norm(dim=-1).clamp(min=1e-3)
    same_side = ((away * directions[:, None]).sum(-1) / distance).clamp(min=0)
    depth = constant(config.depths, points.dtype, points.device).repeat(points.shape[1] // len(config.depths))
    as_large = (depth / distance).clamp(max=1)  # resolution falls with distance
    return inside * same_side**2 * as_large


def choose_views(
    poses: Tensor, past: Tensor, times: Tensor, allowed: Tensor, n: int, config: CoverageConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedily choose n past views that together show most of the views from `poses` [B, Q, 5].

    past: [B, S, 5]; times int64 and allowed bool [B, S]. Returns slots int64 [B, n], the logarithm of each gain (share of the points), and
    which of them exist. Of views with equal gain the one with the larger own coverage is chosen, then the newer one. A view that shows
    no point of the target is never chosen.
    """
    points, directions = target_points(poses, config)
    quality = shown(points, directions, past, config)  # [B, S, P]
    alone = quality.mean(-1)
    best = torch.zeros_like(quality[:, 0])  # [B, P]
    open_ = allowed & (alone > 0)
    slots, gains, exists = [], [], []
    for _ in range(n):
        gain = (quality - best[:, None]).clamp(min=0).mean(-1)
        rank = ((gain + 1e-3 * alone).double() * _GRID * quality.shape[-1]).round()
        rank = torch.where(open_, rank, -math.inf)
        top = rank.amax(1, keepdim=True)
        slot = torch.where(rank == top, times, -1).argmax(1, keepdim=True)
        there = top > -math.inf
        slots.append(slot)
        gains.append(torch.where(there, gain.gather(1, slot).clamp(min=1e-6).log(), -math.inf))
        exists.append(there)
        chosen = quality.gather(1, slot[..., None].expand(-1, -1, quality.shape[-1]))[:, 0]
        best = torch.where(there, torch.maximum(best, chosen), best)
        open_ = open_.scatter(1, slot, False)
    return torch.cat(slots, 1), torch.cat(gains, 1), torch.cat(exists, 1)
