"""A walk in Minecraft as a robot would have driven and filmed it: RECON's layout and rate, a level camera, one way to go per frame.

A walk is a path of poses, 5 a second. It is read off at 4 Hz, between two poses along the straight line, the camera is held level, and
what is seen there is drawn anew, in 4:3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from wmgym.data import recon
from wmgym.data.episode import Episode
from wmgym.kinematics import Displacement
from wmgym.settings import minecraft

STEP_RATE, RATE = 5.0, 4.0  # poses per second: of a walk, of what is written
IMAGE = (120, 160)  # pixels, high and wide
CAMERA = {"render_mode": "rgb_array", "render_size": IMAGE, "size": 16}  # what an env is made with; its own small frames are not used

# One waypoint is one frame's way at full speed, as RECON's 0.25 m are at 1 m/s.
DATASET = recon.Dataset(
    "minecraft",
    Displacement(minecraft.WALK * STEP_RATE / RATE, rate=RATE, field_of_view=minecraft.FIELD_OF_VIEW, aspect=IMAGE[1] / IMAGE[0]),
)


def resample(poses: np.ndarray, before: float = STEP_RATE, after: float = RATE) -> np.ndarray:
    """Poses float32 [T, 5] at another rate, level: positions and unwrapped yaw along straight lines."""
    times = np.arange(len(poses)) / before
    wanted = np.arange(int(np.floor(times[-1] * after + 1e-9)) + 1) / after
    columns = [*poses[:, :3].T, np.unwrap(poses[:, 3].astype(np.float64))]
    x, y, z, yaw = (np.interp(wanted, times, column) for column in columns)
    yaw = np.remainder(yaw + np.pi, 2 * np.pi) - np.pi
    return np.stack([x, y, z, yaw, np.zeros_like(x)], 1).astype(np.float32)


def save_drive(path: Path, env: gym.Env, walk: Episode) -> None:
    """Write a walk of `env` (made with `CAMERA`) as RECON's HDF5."""
    wanted = resample(walk.poses)
    nearest = walk.poses[np.minimum((np.arange(len(wanted)) * STEP_RATE / RATE).round().astype(int), len(walk) - 1)]
    frames, poses = [], []
    for pose, there in zip(wanted, nearest, strict=True):
        try:
            _, info = env.reset(seed=walk.meta.seed, options={"start": pose})
        except ValueError:  # the straight line cuts a corner: stand where the walker stood
            _, info = env.reset(seed=walk.meta.seed, options={"start": np.array([*there[:3], pose[3], 0], np.float32)})
        frames.append(np.asarray(env.render()))
        poses.append(info["pose"])
    space = {"type": "Box", "low": -1.0, "high": 1.0, "shape": [3], "dtype": "float32"}
    meta = replace(walk.meta, action_space=space, segments=())
    recon.write_hdf5(path, frames, np.stack(poses), RATE, meta.to_json())
