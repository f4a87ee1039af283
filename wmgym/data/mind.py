"""MIND's sample folders (Ye et al. 2026): a video, and what was pressed at each of its frames.

    NAME/video.mp4
    NAME/action.json    mark_time (the first frame that a model generates; earlier ones are its context), total_time (frames), caption,
                        and data, one entry per frame: time (the frame), ws, ad, ud, lr (0: nothing, 1 and 2: the two directions that the
                        letters name), actor_pos (x, y, z), actor_rpy (roll x, pitch y, yaw z, in degrees)

Here entry t holds the keys that led to frame t and the pose there, as in episodes (data/episode.py); MIND does not say which of the two
frames beside a key it belongs to. Positions are in the axes of geometry.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmgym.data.film import read_film, write_film
from wmgym.files import as_json, write_atomically

VIDEO, ACTIONS = "video.mp4", "action.json"
KEYS = ("ws", "ad", "ud", "lr")  # forward or back, left or right, look up or down, look left or right
_OPPOSITE = np.array([0, 2, 1])
_PARTS = (0, 1, 4, 3)  # of an egomotion (forward, left, up, turn, tilt): what each key moves


@dataclass(frozen=True)
class Sample:
    """One sample."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    keys: np.ndarray  # int64 [T, 4]: KEYS, each 0, 1 or 2
    poses: np.ndarray  # float64 [T, 5]
    mark_time: int
    caption: str = ""

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.keys) == len(self.poses) or not 0 <= self.mark_time <= len(self.frames):
            counts = f"{len(self.frames)} frames, {len(self.keys)} rows of keys, {len(self.poses)} poses"
            raise ValueError(f"a sample needs keys and a pose for each frame and a mark_time among them, got {counts} and {self.mark_time}")


def keys_of(egomotion: np.ndarray) -> np.ndarray:
    """The keys that cause egomotions [T, 5] (forward, left, up, turn, tilt; as `Kinematics.motion` gives them): int64 [T, 4]."""
    parts = np.asarray(egomotion)[:, _PARTS]
    return np.where(parts > 0, 1, np.where(parts < 0, 2, 0))


def is_mirrored(keys: np.ndarray) -> bool:
    """Whether the second half of keys [2 n, 4] takes back the first: the opposite keys in reverse order."""
    half = len(keys) // 2
    return len(keys) == 2 * half > 0 and bool((keys[half:] == _OPPOSITE[keys[:half][::-1]]).all())


def find_samples(folder: Path) -> list[Path]:
    """The sample folders below a folder, in order. ValueError if there are none."""
    found = sorted(path.parent for path in folder.rglob(ACTIONS) if (path.parent / VIDEO).is_file())
    if not found:
        raise ValueError(f"{folder} holds no sample of MIND: a folder with {VIDEO} and {ACTIONS}")
    return found


def read_sample(folder: Path, size: int | None = None) -> Sample:
    """A sample. With `size`, frames are cropped to the central square and scaled. ValueError if a file is missing or is not MIND's."""
    file = folder / ACTIONS
    try:
        content = json.loads(file.read_text())
        rows = content["data"]
        keys = np.array([[int(row[key]) for key in KEYS] for row in rows], np.int64).reshape(-1, len(KEYS))
        places = [[float(row["actor_pos"][axis]) for axis in "xyz"] for row in rows]
        angles = np.radians([[float(row["actor_rpy"][axis]) for axis in "zy"] for row in rows])
        mark = int(content["mark_time"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not MIND's: {type(error).__name__}: {error}") from error
    if not np.isin(keys, (0, 1, 2)).all():
        raise ValueError(f"{file}: {', '.join(KEYS)} must be 0, 1 or 2, got {sorted(set(keys.ravel().tolist()))}")
    poses = np.concatenate([np.array(places).reshape(-1, 3), angles.reshape(-1, 2)], 1)
    return Sample(read_film(folder / VIDEO, size), keys, poses, mark, str(content.get("caption", "")))


def write_sample(folder: Path, sample: Sample, rate: float) -> None:
    """Write a sample. Its video is lossless, since what is measured on it is small differences."""
    rows = []
    for time, (keys, pose) in enumerate(zip(sample.keys.tolist(), sample.poses.tolist(), strict=True)):
        x, y, z, yaw, pitch = pose
        angles = np.degrees([0.0, pitch, yaw]).tolist()
        places = {"actor_pos": dict(zip("xyz", (x, y, z), strict=True)), "actor_rpy": dict(zip("xyz", angles, strict=True))}
        rows.append({"time": time, **dict(zip(KEYS, keys, strict=True)), **places})
    write_film(folder / VIDEO, sample.frames, rate)
    content = {"mark_time": sample.mark_time, "total_time": len(rows), "caption": sample.caption, "data": rows}
    write_atomically(folder / ACTIONS, as_json(content))
