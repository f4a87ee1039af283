"""Depth images: float32 [H, W], how far away the thing is that a pixel shows.

Depth is in metres along the camera's optical axis (z-depth), at the pixel's centre, without anti-aliasing: a wall that the camera
faces squarely has one depth everywhere. It is infinite where nothing is seen, such as in the sky. `unproject` turns it into points.

An env that can measure depth says so by `metadata["depth"]`, a `DepthCamera`, and has a method `depth()`. Episodes hold it as the
array `depth` [T, H, W], with the camera in their metadata (episode.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DepthCamera:
    """Where the camera is, relative to a pose (x, y, z, yaw, pitch), and what the numbers of its depth images mean."""

    field_of_view: float  # vertical, radians; pixels are square
    eye: tuple[float, float, float]  # metres ahead, to the left and above the pose; turned by its yaw, not by its pitch
    tilt: float = 0.0  # radians that the camera looks higher than the pose's pitch
    axis: str = "optical"
    unit: str = "metres"
    nothing: str = "inf"  # the depth of a pixel that shows nothing

    def __post_init__(self) -> None:
        if not 0 < self.field_of_view < math.pi or len(self.eye) != 3:
            raise ValueError(f"field_of_view must lie between 0 and pi and eye have 3 numbers, got {self.field_of_view} and {self.eye}")
        if (self.axis, self.unit, self.nothing) != ("optical", "metres", "inf"):
            raise ValueError(f"depth must be in metres along the optical axis with inf for nothing, got {self}")


def unproject(depth: NDArray[np.floating], pose: NDArray[np.floating], camera: DepthCamera) -> NDArray[np.float64]:
    """World points that the pixels of depth images [..., H, W] taken at poses [..., 5] show: [..., H, W, 3].

    A point is eye + depth * (ahead + right * u + up * v), where u and v are the pixel's centre on the image plane at distance 1.
    Numbers that are not finite stand for pixels that show nothing.
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
