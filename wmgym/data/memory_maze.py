"""`wmgym import memory-maze`: convert the published offline dataset of Memory Maze (one npz file per trajectory) to episodes.

The arrays have one more row than there were actions, and row t of `action` is the last action before image t, as in episodes. Its positions
are in cells with (0, 0) in a corner; an episode's are in metres (2 m per cell) with (0, 0) in the middle. Files are read without pickle.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

from wmgym.data.episode import Episode, Metadata, describe_space, save_episode
from wmgym.progress import Progress

ARRAYS = ("image", "action", "reward", "agent_pos", "agent_dir", "maze_layout")
CELL = 2.0  # metres
UNKNOWN_SEED = -1  # the dataset does not name its mazes' seeds


@dataclass(frozen=True)
class ImportArgs:
    """Convert trajectories of the published Memory Maze dataset (npz) to episodes for `wmgym train`.

    Writes one episode per file. The time grows with the number of files; a second run converts only missing ones.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """An npz file, or a folder of npz files."""
    out: Path = Path("data/memory-maze")
    """Folder for the episodes."""
    limit: int | None = None
    """Greatest number of files, in the order of their names."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be positive, got {self.limit}")


def import_episodes(args: ImportArgs, progress: bool = True) -> dict[str, Any]:
    """Write one episode per file, with the file's name. Existing episodes are kept."""
    files = sorted(args.source.glob("*.npz")) if args.source.is_dir() else [args.source]
    if not files:
        raise ValueError(f"{args.source} holds no npz files")
    steps = kept = 0
    for file in Progress(files[: args.limit], unit="file", desc="import", disable=not progress):
        path = args.out / f"episode-{file.stem}.safetensors"
        if path.is_file():
            kept += 1
            continue
        episode = read_npz(file)
        save_episode(path, episode)
        steps += episode.steps
    return {"out": str(args.out), "files": len(files[: args.limit]), "kept": kept, "imported_steps": steps}


def read_npz(path: Path) -> Episode:
    """One trajectory of T + 1 images. ValueError names the file and the error."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}: it is not a trajectory of Memory Maze")
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _episode(path, **arrays)


def _episode(
    path: Path,
    image: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    agent_pos: np.ndarray,
    agent_dir: np.ndarray,
    maze_layout: np.ndarray,
) -> Episode:
    length, cells = len(image), maze_layout.shape[-1]
    for name, array, shape in (
        ("action", action, (length, 6)),
        ("reward", reward, (length,)),
        ("agent_pos", agent_pos, (length, 2)),
        ("agent_dir", agent_dir, (length, 2)),
        ("maze_layout", maze_layout, (length, cells, cells)),
    ):
        if array.shape != shape:
            raise ValueError(f"{path}: {name} must have the shape {list(shape)}, got {list(array.shape)}")
    if not np.isin(action, (0, 1)).all() or (action.sum(1) > 1).any() or (action[1:].sum(1) != 1).any():
        raise ValueError(f"{path}: each action after the first must be one-hot")
    poses = np.zeros((length, 5), np.float32)
    poses[:, :2] = (agent_pos - cells / 2) * CELL
    poses[:, 3] = np.arctan2(agent_dir[:, 1], agent_dir[:, 0])
    poses[poses[:, 3] >= np.float32(np.pi), 3] = -np.float32(np.pi)
    ends = np.zeros(length, bool)
    actions = action.argmax(1).astype(np.int64)
    actions[0] = 0  # nothing was done before the first image
    ends[-1] = True  # no trajectory ends by itself: each is cut off
    frame = gym.spaces.Box(0, 255, image.shape[1:], np.uint8)
    meta = Metadata(
        env_id=f"MemoryMaze-{cells}x{cells}-v0",
        seed=UNKNOWN_SEED,
        walker="memory-maze dataset",
        action_space=describe_space(gym.spaces.Discrete(6)),
        observation_space=describe_space(frame),
    )
    try:
        return Episode(image, actions, poses, reward.astype(np.float32), np.zeros(length, bool), ends, meta)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
