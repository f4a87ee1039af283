"""Depth images: float32 [H, W], the distance to the surface at each pixel.

Depth is in metres along the camera's optical axis (z-depth), at the pixel's centre, without anti-aliasing. A wall at a right angle to the
axis has the same depth everywhere. Pixels without a surface, such as sky, have infinite depth. `unproject` converts depth to points, and
`project` finds points in an image.

An env that measures depth has a `DepthCamera` as `metadata["depth"]`, and a method `depth()`. Episodes store the array `depth`
[T, H, W], with the camera in their metadata (episode.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DepthCamera:
    """Position of the camera relative to a pose (x, y, z, yaw, pitch), and the meaning of its depth values."""

    field_of_view: float  # vertical, radians; pixels are square
    eye: tuple[float, float, float]  # metres ahead, to the left and above the pose; turned by its yaw, not by its pitch
    tilt: float = 0.0  # camera pitch minus the pose's pitch, in radians
    axis: str = "optical"
    unit: str = "metres"
    nothing: str = "inf"  # depth of a pixel without a surface

    def __post_init__(self) -> None:
        if not 0 < self.field_of_view < math.pi or len(self.eye) != 3:
            raise ValueError(f"field_of_view must lie between 0 and pi and eye have 3 numbers, got {self.field_of_view} and {self.eye}")
        if (self.axis, self.unit, self.nothing) != ("optical", "metres", "inf"):
            raise ValueError(f"depth must be in metres along the optical axis with inf for nothing, got {self}")


def unproject(depth: NDArray[np.floating], pose: NDArray[np.floating], camera: DepthCamera) -> NDArray[np.float64]:
    """World points of the pixels of depth images [..., H, W] at poses [..., 5]: [..., H, W, 3].

    A point is eye + depth * (ahead + right * u + up * v), where u and v are the pixel's centre on the image plane at distance 1.
    Points of pixels without a surface are not finite.
    """
    depth, pose = np.asarray(depth, np.float64), np.asarray(pose, np.float64)
    height, width = depth.shape[-2:]
    half = math.tan(camera.field_of_view / 2)
    right = ((2 * np.arange(width) + 1) / width - 1) * half * width / height
    up = (1 - (2 * np.arange(height) + 1) / height)[:, None] * half
    pitch = pose[..., 4, None, None] + camera.tilt
    cos, sin = np.cos(pose[..., 3, None, None]), np.sin(pose[..., 3, None, None])
    ahead, left, above = camera.eye
    with np.errstate(invalid="ignore"):  # infinity times 0
        forward = ahead + depth * (np.cos(pitch) - up * np.sin(pitch))
        sideways = left - depth * right
        vertical = above + depth * (np.sin(pitch) + up * np.cos(pitch))
        return np.stack([forward * cos - sideways * sin, forward * sin + sideways * cos, vertical], -1) + pose[..., None, None, :3]


def project(
    points: NDArray[np.floating], pose: NDArray[np.floating], camera: DepthCamera, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where world points [..., n, 3] are in images of `shape` (H, W) at poses [..., 5]: row, column and depth, [..., n] each.

    The inverse of `unproject`. Rows and columns are in pixels, whole at a pixel's centre, and may lie outside of the image. Points that are
    not in front of the camera have a depth of at most 0, and no meaningful row and column.
    """
    pose, (height, width) = np.asarray(pose, np.float64), shape
    cos, sin = np.cos(pose[..., None, 3]), np.sin(pose[..., None, 3])
    pitch = pose[..., None, 4] + camera.tilt
    away = np.asarray(points, np.float64) - pose[..., None, :3]
    ahead, left, above = camera.eye
    forward = away[..., 0] * cos + away[..., 1] * sin - ahead
    sideways = away[..., 1] * cos - away[..., 0] * sin - left
    vertical = away[..., 2] - above
    depth = forward * np.cos(pitch) + vertical * np.sin(pitch)
    half = math.tan(camera.field_of_view / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        up = (vertical * np.cos(pitch) - forward * np.sin(pitch)) / depth / half
        right = -sideways / depth / (half * width / height)
    return ((1 - up) * height - 1) / 2, ((1 + right) * width - 1) / 2, depth
