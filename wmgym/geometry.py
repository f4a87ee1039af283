"""Poses and egomotion. This file defines axes, units and angles for the whole library.

A pose is float32 `[..., 5]`: x, y, z of the feet in metres (blocks in Minecraft), z up; yaw in radians, 0 along +x,
counter-clockwise seen from above, wrapped to [-pi, pi); pitch in radians, up positive. Worlds without height or pitch leave
those 0. An egomotion is `[..., 5]`: forward, left, up, turn, tilt, in the frame of the pose it starts from (up stays vertical).
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Angles = TypeVar("Angles", float, np.ndarray, Tensor)


def wrap_angle(angle: Angles) -> Angles:
    """Angles in [-pi, pi): of a number, an array or a tensor."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _rotate(xy: Tensor, yaw: Tensor) -> Tensor:
    cos, sin = yaw.cos(), yaw.sin()
    return torch.stack([xy[..., 0] * cos - xy[..., 1] * sin, xy[..., 0] * sin + xy[..., 1] * cos], -1)


def compose(pose: Tensor, egomotion: Tensor) -> Tensor:
    """The pose after an egomotion. Pitch is clamped to [-pi/2, pi/2]."""
    xy = pose[..., :2] + _rotate(egomotion[..., :2], pose[..., 3])
    z = pose[..., 2] + egomotion[..., 2]
    yaw = wrap_angle(pose[..., 3] + egomotion[..., 3])
    pitch = (pose[..., 4] + egomotion[..., 4]).clamp(-math.pi / 2, math.pi / 2)
    return torch.cat([xy, torch.stack([z, yaw, pitch], -1)], -1)


def walk(pose: Tensor, egomotion: Tensor) -> Tensor:
    """Poses [B, F, 5] reached from a pose [B, 5] by consecutive egomotions [B, F, 5]."""
    poses = []
    for motion in egomotion.unbind(1):
        pose = compose(pose, motion)
        poses.append(pose)
    return torch.stack(poses, 1)


def relative_pose(pose: Tensor, origin: Tensor) -> Tensor:
    """`pose` relative to `origin`: the egomotion from origin to pose. Broadcasts. Inverse of `compose`."""
    xy = _rotate(pose[..., :2] - origin[..., :2], -origin[..., 3].expand(pose.shape[:-1]))
    z = pose[..., 2] - origin[..., 2]
    turn = wrap_angle(pose[..., 3] - origin[..., 3])
    tilt = pose[..., 4] - origin[..., 4]
    return torch.cat([xy, torch.stack([z, turn, tilt], -1)], -1)


def step_back(pose: Tensor, egomotion: Tensor) -> Tensor:
    """The pose before `egomotion`: the inverse of `compose` in its first argument, if pitch was not clamped."""
    yaw = wrap_angle(pose[..., 3] - egomotion[..., 3])
    xy = pose[..., :2] - _rotate(egomotion[..., :2], yaw)
    return torch.cat([xy, torch.stack([pose[..., 2] - egomotion[..., 2], yaw, pose[..., 4] - egomotion[..., 4]], -1)], -1)


def view_direction(pose: Tensor) -> Tensor:
    """Unit vector of the view: [..., 5] -> [..., 3] (WorldPack, section 4.2)."""
    yaw, pitch = pose[..., 3], pose[..., 4]
    return torch.stack([pitch.cos() * yaw.cos(), pitch.cos() * yaw.sin(), pitch.sin()], -1)


def view_axes(pose: Tensor) -> Tensor:
    """Directions of the camera's forward, left and up in the world, as the columns of a rotation: [..., 5] -> [..., 3, 3]."""
    yaw, pitch = pose[..., 3], pose[..., 4]
    nothing = torch.zeros_like(yaw)
    forward = view_direction(pose)
    left = torch.stack([-yaw.sin(), yaw.cos(), nothing], -1)
    up = torch.stack([-pitch.sin() * yaw.cos(), -pitch.sin() * yaw.sin(), pitch.cos()], -1)
    return torch.stack([forward, left, up], -1)


def relative_camera(pose: Tensor, reference: Tensor) -> Tensor:
    """Translation (3) and rotation (9, row by row) of `pose` [..., 5] in the camera's axes at `reference`: [..., 12]. Broadcasts.

    Echo-Memory's relative RT. At the reference itself it is (0, 0, 0) and the identity.
    """
    pose, reference = torch.broadcast_tensors(pose, reference)
    own = view_axes(reference)
    moved = in_axes(pose[..., :3] - reference[..., :3], own)
    turned = in_axes(view_axes(pose).transpose(-1, -2), own[..., None, :, :])  # rows: the axes of `pose`
    return torch.cat([moved, turned.transpose(-1, -2).flatten(-2)], -1)


def in_axes(vectors: Tensor, axes: Tensor) -> Tensor:
    """Components of vectors [..., 3] along the columns of axes [..., 3, 3]. Broadcasts.

    A sum rather than a matrix product, which autocast would round to bfloat16.
    """
    return (vectors[..., :, None] * axes).sum(-2)


def from_axes(components: Tensor, axes: Tensor) -> Tensor:
    """The vectors [..., 3] with these components [..., 3] along the columns of axes [..., 3, 3]: the inverse of `in_axes`."""
    return (components[..., None, :] * axes).sum(-1)


def token_rays(relative: Tensor, pitch: Tensor, height: int, width: int, field_of_view: float, aspect: float = 1.0) -> Tensor:
    """View rays of the tokens of frames, in the yaw frame of a reference pose.

    relative: [B, n, 5], each frame's pose relative to the reference pose (`relative_pose`); pitch: [B], pitch of the reference pose.
    Frames have height x width tokens; field_of_view is vertical, in radians; a pixel is `aspect` times as wide as it is high (1 unless
    a wide view was scaled to a square).
    Returns [B, n, height * width, 6]: unit direction of the token's centre (forward, left, up) and the eye's offset
    (forward, left, up; metres). Two tokens that show the same distant point have the same direction.
    """
    tan = math.tan(field_of_view / 2)
    rows = (1 - 2 * (torch.arange(height, device=relative.device) + 0.5) / height) * tan
    columns = (1 - 2 * (torch.arange(width, device=relative.device) + 0.5) / width) * tan * width / height * aspect
    up, left = torch.meshgrid(rows, columns, indexing="ij")
    up, left = up.flatten(), left.flatten()  # [N]; the camera looks along forward = 1
    tilt = (pitch[:, None] + relative[..., 4])[..., None]  # [B, n, 1]: each frame's absolute pitch
    forward = tilt.cos() - tilt.sin() * up
    vertical = tilt.sin() + tilt.cos() * up
    turn = relative[..., 3, None]
    direction = torch.stack([forward * turn.cos() - left * turn.sin(), forward * turn.sin() + left * turn.cos(), vertical], -1)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    eye = relative[..., None, :3].expand_as(direction)
    return torch.cat([direction, eye], -1)
