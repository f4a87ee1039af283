"""RECON (Shah et al. 2021) and data in its layouts: a robot's camera and odometry, one trajectory per file or folder.

    released:   DIR/jackal_*.hdf5       images/rgb_left (JPEGs), jackal/position [T, 3] metres, jackal/yaw [T] radians
    processed:  DIR/NAME/0.jpg ...      and traj_data.pkl: position [T, 2], yaw [T]  (what NWM and the GNM family read)

`dataset.json` in a folder has the fields of `Dataset`; without it the folder is one of `DATASETS`. `traj_names.txt` lists the trajectories
to use, if not all. Frames are cropped to the central 4:3 part and scaled to a square.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from wmgym.data.episode import RECORDED, Episode, Metadata, save_episode
from wmgym.extras import need
from wmgym.files import as_json, write_atomically
from wmgym.data.unpickle import load_plain
from wmgym.geometry import relative_pose, wrap_angle
from wmgym.kinematics import Displacement

IMAGES, POSITION, YAW = "images/rgb_left", "jackal/position", "jackal/yaw"
ASPECT = 4 / 3  # width divided by height of the cropped image
SUFFIX = ".hdf5"
META = "wmgym_episode"  # attribute of files that wmgym wrote


@dataclass(frozen=True)
class Dataset:
    """Name and action normalisation of a dataset."""

    name: str
    displacement: Displacement


# Metres between waypoints of the datasets that NWM was trained on (its released configuration).
SPACINGS = {"recon": 0.25, "scand": 0.38, "tartan_drive": 0.72, "go_stanford": 0.12, "sacson": 0.255}
DATASETS = {name: Dataset(name, Displacement(spacing=spacing)) for name, spacing in SPACINGS.items()}


@dataclass(frozen=True)
class Trajectory:
    """One drive. Its images are read on demand."""

    name: str
    poses: np.ndarray  # float32 [T, 5]: x, y in metres, yaw; height and pitch are 0
    source: Path  # a file, or a folder of images

    def __len__(self) -> int:
        return len(self.poses)

    def frames(self, index: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
        """uint8 [n, size, size, 3], RGB."""
        images = _jpegs(self.source, [int(i) for i in index])
        return np.stack([_square(image, size, f"{self.source}, image {i}") for image, i in zip(images, index, strict=True)])

    def egomotion(self, stride: int = 1) -> np.ndarray:
        """Displacements over `stride` steps, each in the frame of the pose it starts from: float32 [T - stride, 5]."""
        poses = torch.from_numpy(self.poses)
        return relative_pose(poses[stride:], poses[: len(poses) - stride]).numpy()


# -- reading ----------------------------------------------------------------------------------------------------------------------------


def read_dataset(folder: Path | str, name: str = "recon") -> Dataset:
    """The dataset of `dataset.json`, or else the published dataset `name`."""
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        if name not in DATASETS:
            raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {name!r}, and there is no {file}")
        return DATASETS[name]
    try:
        found = json.loads(file.read_text())
        moves: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found["displacement"].items()}
        return Dataset(str(found["name"]), Displacement(**moves))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} does not describe a dataset: {error!r}") from error


def write_dataset(folder: Path | str, dataset: Dataset) -> None:
    write_atomically(Path(folder) / "dataset.json", as_json(asdict(dataset)))


def list_trajectories(folder: Path | str) -> list[Path]:
    """Files and folders of trajectories, in order, or only those in `traj_names.txt` if it exists. ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; make one with `wmgym collect --format recon --out {folder}`")
    paths = [*folder.glob(f"*{SUFFIX}"), *(pickle.parent for pickle in folder.glob("*/traj_data.pkl"))]
    names = folder / "traj_names.txt"
    if names.is_file():
        wanted = set(names.read_text().split())
        paths = [path for path in paths if path.stem in wanted]
        if missing := wanted - {path.stem for path in paths}:
            raise ValueError(f"{names} names {len(missing)} trajectories that do not exist, {min(missing)!r} among them")
    if not paths:
        raise ValueError(f"{folder} holds no trajectories: neither *{SUFFIX} files nor folders with a traj_data.pkl")
    return sorted(path for path in paths if not path.name.startswith("."))


def read_trajectory(path: Path | str) -> Trajectory:
    """The odometry of a trajectory. ValueError if it is damaged."""
    path = Path(path)
    position, yaw = _from_hdf5(path) if path.suffix == SUFFIX else _from_pickle(path / "traj_data.pkl")
    position, yaw = np.asarray(position, np.float64), np.asarray(yaw, np.float64).reshape(-1)
    if position.ndim != 2 or position.shape[1] < 2 or len(position) != len(yaw) or not len(yaw):
        raise ValueError(f"{path}: position must be [T, 2 or 3] and yaw [T], got {list(position.shape)} and {list(yaw.shape)}")
    if not (np.isfinite(position).all() and np.isfinite(yaw).all()):
        raise ValueError(f"{path}: position and yaw must be finite")
    poses = np.zeros((len(yaw), 5), np.float32)
    poses[:, :2], poses[:, 3] = position[:, :2], wrap_angle(torch.from_numpy(yaw)).numpy()
    return Trajectory(path.stem, poses, path)


def _from_hdf5(path: Path) -> tuple[Any, Any]:
    with _open(path) as file:
        try:
            return file[POSITION][:], file[YAW][:]
        except (KeyError, OSError) as error:
            raise ValueError(f"{path} lacks {POSITION} or {YAW}, or is damaged: {error}") from error


def _from_pickle(path: Path) -> tuple[Any, Any]:
    held = load_plain(path)
    if not isinstance(held, dict) or not {"position", "yaw"} <= held.keys():
        raise ValueError(f"{path} must hold position and yaw, got {sorted(held) if isinstance(held, dict) else type(held).__name__}")
    return held["position"], held["yaw"]


def _jpegs(source: Path, index: list[int]) -> list[bytes]:
    if source.suffix != SUFFIX:
        try:
            return [(source / f"{i}.jpg").read_bytes() for i in index]
        except FileNotFoundError as error:
            raise ValueError(f"{source} lacks the image {Path(str(error.filename)).name}") from None
    with _open(source) as file:
        try:
            images = file[IMAGES]
            return [bytes(images[i]) for i in index]
        except (KeyError, ValueError, OSError, IndexError) as error:
            raise ValueError(f"{source}: cannot read {IMAGES}: {error}") from error


def check_hdf5() -> None:
    """ImportError without the package for HDF5 files."""
    need("recon", "RECON's HDF5 files need")


def _open(path: Path) -> Any:
    check_hdf5()
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file: {error}") from error


def _square(jpeg: bytes, size: int, name: str) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        raise ValueError(f"{name} is not a readable JPEG")
    height, width = image.shape[:2]
    high, wide = min(height, round(width / ASPECT)), min(width, round(height * ASPECT))
    top, left = (height - high) // 2, (width - wide) // 2
    part = image[top : top + high, left : left + wide, ::-1]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if high > size else cv2.INTER_LINEAR)


# -- splits -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Task:
    """One planning problem: go from frame `time` of a trajectory to the view `goal` frames later."""

    trajectory: str
    time: int
    goal: int


def read_split(path: Path | str) -> list[Task]:
    """NWM's `navigation_eval.pkl`: a list of (trajectory, time, nearest goal, furthest goal), of which the furthest goal is used."""
    held = load_plain(path)
    try:
        tasks = [Task(str(name), int(time), int(goal)) for name, time, _, goal in held]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold tuples (trajectory, time, nearest goal, furthest goal): {error}") from error
    if not tasks:
        raise ValueError(f"{path} holds no tasks")
    return tasks


def make_split(trajectories: Sequence[Trajectory], count: int, horizon: int, context: int, seed: int) -> list[Task]:
    """`count` random tasks, at times 3, 11, 19, ... as in the published split, each with `context` frames before it.

    A larger count adds tasks to those of a smaller one.
    """
    first = 3 + 8 * max(0, -(-(context - 4) // 8))
    places = [Task(t.name, time, horizon) for t in trajectories for time in range(first, len(t) - horizon, 8)]
    if not places:
        longest = max(map(len, trajectories), default=0)
        raise ValueError(f"no trajectory is long enough for {context} frames of context and {horizon} ahead: the longest has {longest}")
    order = np.random.default_rng(seed).permutation(len(places))
    return [places[i] for i in order[:count]]


def straight_lines(trajectories: Sequence[Trajectory], moves: Displacement, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Straight lines to the poses that the drives reached in `horizon` steps: normalised (dx, dy) per step [N, 2], final turns / pi [N].

    Parts that moved less than a tenth of the spacing are excluded, since they have no heading.
    """
    parts = [t.egomotion(horizon) for t in trajectories if len(t) > horizon]
    whole = torch.from_numpy(np.concatenate([np.zeros((0, 5), np.float32), *parts]))
    whole = whole[whole[:, :2].norm(dim=1) >= 0.1 * moves.spacing]
    if len(whole) < 2:
        raise ValueError(f"no trajectory moves over {horizon} frames: a prior cannot be estimated")
    turns = wrap_angle(whole[:, 3] - torch.atan2(whole[:, 1], whole[:, 0])) / torch.pi
    return moves.action(torch.cat([whole[:, :3] / horizon, whole[:, 3:]], 1))[:, :2], turns


# -- as episodes, and back --------------------------------------------------------------------------------------------------------------


def to_actions(trajectory: Trajectory, moves: Displacement) -> np.ndarray:
    """The action before each frame: normalised displacements float32 [T, 3]. The first one is standing still."""
    egomotion = np.concatenate([np.zeros((1, 5), np.float32), trajectory.egomotion()])
    return moves.action(torch.from_numpy(egomotion)).numpy()


def to_episode(trajectory: Trajectory, moves: Displacement, size: int, dataset: str = "recon") -> Episode:
    """The drive as an `Episode` with the actions of `to_actions`."""
    count = len(trajectory)
    space = {"type": "Box", "low": -1.0, "high": 1.0, "shape": [3], "dtype": "float32"}
    return Episode(
        frames=trajectory.frames(range(count), size),
        actions=to_actions(trajectory, moves),
        poses=trajectory.poses,
        rewards=np.zeros(count, np.float32),
        terminated=np.zeros(count, np.bool_),
        truncated=np.zeros(count, np.bool_),
        meta=Metadata(env_id=f"{RECORDED}{dataset}", seed=0, walker=trajectory.name, action_space=space),
    )


def convert(folder: Path, out: Path, dataset: Dataset, size: int, progress: Any = None) -> list[Path]:
    """Convert each trajectory of a folder to an episode file in `out`. Existing files are kept."""
    files = []
    for path in list_trajectories(folder):
        files.append(out / f"{path.stem}.safetensors")
        if not files[-1].is_file():
            save_episode(files[-1], to_episode(read_trajectory(path), dataset.displacement, size, dataset.name))
        if progress is not None:
            progress.update()
    return files


def write_hdf5(path: Path, frames: Sequence[np.ndarray], poses: np.ndarray, rate: float, meta: str = "", quality: int = 95) -> None:
    """Write a trajectory in RECON's released layout, atomically: RGB frames [H, W, 3], poses [T, 5]."""
    check_hdf5()
    import io

    import h5py

    encoded = [cv2.imencode(".jpg", np.ascontiguousarray(f[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes() for f in frames]
    moved = relative_pose(torch.from_numpy(poses[1:]), torch.from_numpy(poses[:-1])).numpy() * rate
    moved = np.concatenate([np.zeros((1, 5), np.float32), moved])
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file[IMAGES] = np.array(encoded)
        file[POSITION], file[YAW] = poses[:, :3].astype(np.float64), poses[:, 3].astype(np.float64)
        file["jackal/linear_velocity"], file["jackal/angular_velocity"] = moved[:, 0].astype(np.float64), moved[:, 3].astype(np.float64)
        file.attrs[META] = meta
        file.attrs["rate"] = rate
    write_atomically(path, buffer.getvalue())


def read_meta(path: Path) -> tuple[str, int, tuple[int, int, int]]:
    """Metadata, number of frames and frame shape of a file that wmgym wrote. ValueError if it is another file or damaged."""
    with _open(path) as file:
        count = len(file[YAW]) if YAW in file else 0
        text = file.attrs.get(META, "")
    if not count or not text:
        raise ValueError(f"{path} was not written by wmgym")
    image = cv2.imdecode(np.frombuffer(_jpegs(path, [count - 1])[0], np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: its last image is damaged")
    return text, count, image.shape
