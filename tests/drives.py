"""Tiny drives on the disk, in both layouts that RECON comes in: what one sees is a plain function of where one is."""

import pickle
from pathlib import Path

import cv2
import numpy as np

from wmgym.data import recon
from wmgym.data.recon import Dataset
from wmgym.kinematics import Displacement

TOY = Dataset("toy", Displacement(spacing=0.5))
HIGH, WIDE = 24, 32


def path(length: int, seed: int) -> np.ndarray:
    """A smooth drive: poses float32 [T, 5], about one spacing a step."""
    rng = np.random.default_rng(seed)
    turns = np.cumsum(rng.normal(0, 0.02, length)) + 0.05 * rng.normal()
    yaw = np.cumsum(turns) + rng.uniform(-3, 3)
    step = 0.5 * np.stack([np.cos(yaw), np.sin(yaw)], 1) * rng.uniform(0.8, 1.2, (length, 1))
    poses = np.zeros((length, 5), np.float32)
    poses[:, :2], poses[:, 3] = np.cumsum(step, 0) + 10 * rng.normal(size=2), (yaw + np.pi) % (2 * np.pi) - np.pi
    return poses


def picture(pose: np.ndarray) -> np.ndarray:
    """uint8 [HIGH, WIDE, 3], smooth in space and pose, so that a JPEG keeps it."""
    v, u = np.meshgrid(np.linspace(0, 1, HIGH), np.linspace(0, 1, WIDE), indexing="ij")
    waves = [np.sin(3 * u + pose[0]), np.sin(3 * v + pose[1]), np.cos(2 * u + pose[3])]
    return np.round(127.5 + 90 * np.stack(waves, -1)).astype(np.uint8)


def write_released(folder: Path, count: int = 3, length: int = 30, dataset: Dataset | None = TOY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        poses = path(length, i)
        recon.write_hdf5(folder / f"jackal_{i}.hdf5", [picture(pose) for pose in poses], poses, 4.0)
    if dataset is not None:
        recon.write_dataset(folder, dataset)
    return folder


def write_processed(folder: Path, count: int = 3, length: int = 30, dataset: Dataset | None = TOY) -> Path:
    for i in range(count):
        poses = path(length, i)
        (folder / f"jackal_{i}").mkdir(parents=True)
        for t, pose in enumerate(poses):
            cv2.imwrite(str(folder / f"jackal_{i}" / f"{t}.jpg"), picture(pose)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        held = {"position": poses[:, :2].astype(np.float64), "yaw": poses[:, 3].astype(np.float64)}
        (folder / f"jackal_{i}" / "traj_data.pkl").write_bytes(pickle.dumps(held))
    if dataset is not None:
        recon.write_dataset(folder, dataset)
    return folder
