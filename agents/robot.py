"""Minecraft walks recorded as a robot's drives: in RECON's layout and rate, with a level camera.

A walk is a path of poses at 5 Hz. It is resampled at 4 Hz by linear interpolation, with pitch 0, and frames are rendered at the new poses
with an aspect ratio of 4:3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from wmgym.data import recon
from wmgym.data.episode import Episode
from wmgym.geometry import wrap_angle
from wmgym.kinematics import Displacement
from wmgym.settings import minecraft

STEP_RATE, RATE = 5.0, 4.0  # poses per second: of a walk, and of a drive
IMAGE = (120, 160)  # height and width in pixels
CAMERA = {"render_mode": "rgb_array", "render_size": IMAGE, "size": 16}  # keywords of the env; its observations are not used

# The waypoint spacing is the distance of one frame at full speed, like RECON's 0.25 m at 1 m/s.
DATASET = recon.Dataset(
    "minecraft",
    Displacement(minecraft.WALK * STEP_RATE / RATE, rate=RATE, field_of_view=minecraft.FIELD_OF_VIEW, aspect=IMAGE[1] / IMAGE[0]),
)


def resample(poses: np.ndarray, before: float = STEP_RATE, after: float = RATE) -> np.ndarray:
    """Poses float32 [T, 5] resampled from rate `before` to rate `after`: linear in position and unwrapped yaw, with pitch 0."""
    times = np.arange(len(poses)) / before
    wanted = np.arange(int(np.floor(times[-1] * after + 1e-9)) + 1) / after
    columns = [*poses[:, :3].T, np.unwrap(poses[:, 3].astype(np.float64))]
    x, y, z, yaw = (np.interp(wanted, times, column) for column in columns)
    return np.stack([x, y, z, wrap_angle(yaw), np.zeros_like(x)], 1).astype(np.float32)


def save_drive(path: Path, env: gym.Env, walk: Episode) -> None:
    """Write a walk of `env` (made with `CAMERA`) in RECON's HDF5 layout."""
    wanted = resample(walk.poses)
    nearest = walk.poses[np.minimum((np.arange(len(wanted)) * STEP_RATE / RATE).round().astype(int), len(walk) - 1)]
    frames, poses = [], []
    for pose, there in zip(wanted, nearest, strict=True):
        try:
            _, info = env.reset(seed=walk.meta.seed, options={"start": pose})
        except ValueError:  # the interpolated position is inside a block: use the walker's own
            _, info = env.reset(seed=walk.meta.seed, options={"start": np.array([*there[:3], pose[3], 0], np.float32)})
        frames.append(np.asarray(env.render()))
        poses.append(info["pose"])
    space = {"type": "Box", "low": -1.0, "high": 1.0, "shape": [3], "dtype": "float32"}
    meta = replace(walk.meta, action_space=space, segments=())
    recon.write_hdf5(path, frames, np.stack(poses), RATE, meta.to_json())
