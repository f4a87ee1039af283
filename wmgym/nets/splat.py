"""Points with features: remembered cells placed in the world by their depth, and drawn into another view.

    depth + pose --> a point for each cell --> projection into the target view --> occlusion test --> features at the target's cells

A cell is a place of a picture's grid, such as a latent's. Depth is along the camera's optical axis, in metres (`data/depth.py`). A camera
is [4]: how far the eye is ahead of, to the left of and above a pose, and how much the camera is tilted against it, in metres and radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.geometry import from_axes, in_axes, view_axes

NEAREST = 0.05  # metres before the eye within which nothing is drawn
LEAST = 0.1  # of a point's share: what a cell needs to show something, and a point needs to hide others
GRID = 1024  # places are rounded to 1/1024 of a cell, so that rounding errors in a batch cannot move a point to another cell
SLACK = (0.1, 0.25)  # a point is hidden if it is this share, and this many metres, behind the nearest at a cell


@dataclass(frozen=True)
class View:
    """How pictures are projected."""

    field_of_view: float  # radians, vertical
    aspect: float = 1.0  # width of the view divided by its height

    @property
    def tan(self) -> tuple[float, float]:
        """Tangents of half the view, to the left and up."""
        half = math.tan(self.field_of_view / 2)
        return half * self.aspect, half


def eyes(poses: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the eyes [..., 3], and the cameras' axes [..., 3, 3], of poses [..., 5]."""
    upright = torch.cat([poses[..., :4], torch.zeros_like(poses[..., 4:])], -1)
    eye = poses[..., :3] + from_axes(camera[:3], view_axes(upright))
    tilted = torch.cat([poses[..., :4], poses[..., 4:] + camera[3]], -1)
    return eye, view_axes(tilted)


def place(depth: Tensor, poses: Tensor, camera: Tensor, view: View) -> Tensor:
    """World points of the cells' centres: depth [..., h, w] at poses [..., 5] -> [..., h, w, 3]."""
    (h, w), (left, up) = depth.shape[-2:], view.tan
    y = (1 - (2 * torch.arange(h, device=depth.device) + 1) / h) * up
    x = (1 - (2 * torch.arange(w, device=depth.device) + 1) / w) * left
    rays = torch.stack([torch.ones(h, w, device=depth.device), x.expand(h, w), y[:, None].expand(h, w)], -1)
    eye, axes = eyes(poses, camera)
    return eye[..., None, None, :] + depth[..., None] * from_axes(rays, axes[..., None, None, :, :])


def project(points: Tensor, poses: Tensor, camera: Tensor, view: View, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points [B, P, 3] in the views from poses [B, F, 5]: row and column [B, F, P, 2], in cells, and depth [B, F, P].

    The centre of the first cell is at (0.5, 0.5). Points behind the eye have a depth below 0, and a place of no meaning.
    """
    eye, axes = eyes(poses, camera)
    seen = in_axes(points[:, None] - eye[:, :, None], axes[:, :, None])  # [B, F, P, 3]: forward, left, up
    depth, (left, up) = seen[..., 0], view.tan
    safe = depth.clamp(min=NEAREST)
    row = (1 - seen[..., 2] / (safe * up)) / 2 * size[0]
    column = (1 - seen[..., 1] / (safe * left)) / 2 * size[1]
    return torch.stack([row, column], -1), depth


def render(
    points: Tensor, features: Tensor, exists: Tensor, poses: Tensor, camera: Tensor, view: View, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw points [B, P, 3] with features [B, P, C] into the views from poses [B, F, 5].

    A point is shared by the four cells around it. Of the points at a cell those count that are not behind the nearest (`SLACK`). exists:
    bool [B, P]. Returns features [B, F, C, h, w], 0 where nothing is, and which cells show a point: bool [B, F, h, w].
    """
    at, depth = project(points, poses, camera, view, size)
    at = (at * GRID).round() / GRID
    corner = (at - 0.5).floor()
    (h, w), share = size, at - 0.5 - corner  # [B, F, P, 2]
    cell, weight, far = [], [], []
    for down in (0, 1):
        for right in (0, 1):
            r, c = corner[..., 0] + down, corner[..., 1] + right
            inside = exists[:, None] & (depth > NEAREST) & (r >= 0) & (r < h) & (c >= 0) & (c < w)
            part = (share[..., 0] if down else 1 - share[..., 0]) * (share[..., 1] if right else 1 - share[..., 1])
            cell.append((r.clamp(0, h - 1) * w + c.clamp(0, w - 1)).long())
            weight.append(torch.where(inside, part, torch.zeros_like(part)))
            far.append(torch.where(inside & (part >= LEAST), depth, torch.inf))
    cells, weights, depths = (torch.cat(parts, -1) for parts in (cell, weight, far))  # [B, F, 4 P]
    nearest = depths.new_full((*cells.shape[:2], h * w), torch.inf).scatter_reduce(-1, cells, depths, "amin")
    front = depth.repeat(1, 1, 4) <= (1 + SLACK[0]) * nearest.gather(-1, cells) + SLACK[1]
    weights = torch.where(front, weights, torch.zeros_like(weights))
    total = torch.zeros_like(nearest).scatter_add(-1, cells, weights)
    drawn = features.repeat(1, 4, 1)[:, None] * weights[..., None].to(features.dtype)  # [B, F, 4 P, C]
    summed = drawn.new_zeros(*nearest.shape, drawn.shape[-1]).scatter_add(2, cells[..., None].expand_as(drawn), drawn)
    mean = summed / total.clamp(min=1e-6)[..., None].to(drawn.dtype)
    there = total >= LEAST
    mean = torch.where(there[..., None], mean, torch.zeros_like(mean))
    return mean.transpose(-1, -2).unflatten(-1, size), there.unflatten(-1, size)
