"""LoopNav's released layout (Lian et al. 2025): one video and one list of rows per walk. Reads them as episodes, and writes episodes.

    {task}/{range}/{place}/{name}.avi    MJPG, 640 x 360
    {task}/{range}/{place}/{name}.json   a list with one row per frame: x, y, z (blocks), yaw, pitch (radians, mineflayer's: 0 along -z,
                                         counter-clockwise, never wrapped), action (seven keys; camera [dyaw, dpitch] in radians per tick),
                                         goal ({x, y, z} or null), frame_count, extra_info (seed, location, nvtype, nvrange)

The release leaves some points open, which are handled as follows:

* Its comments contradict each other on whether action i leads to image i or away from it: `alignment` decides by correlation.
* Exploration ends with the last row whose goal is more than 2 blocks from the start of the walk, in x or z (`split_of`).
* Idle ticks are missing and the camera moves freely, but Minecraft-v0 has ten actions of 0.2 s. `retime` follows the video in such actions:
  each step starts at a true pose and ends at the frame that its action explains best, so errors do not accumulate.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.data.episode import RETURN, Episode, Metadata, Segment
from wmgym.data.film import read_film, write_film
from wmgym.files import write_atomically
from wmgym.geometry import wrap_angle
from wmgym.settings.minecraft import HANDS

KEYS = ("forward", "back", "left", "right", "jump", "sprint", "sneak")
HOME = 2.0  # blocks: a goal within this distance of the start belongs to the way back
RATE = 5  # frames per second of walks of wmgym; the release has 20
AHEAD = 12  # rows of the release that are searched for the end of a step
WALK = 4.317 / 20  # blocks per row of the release, when walking
TURN = math.radians(15)
YAW_SCALE = 1.5  # blocks per radian in the distance of poses


@dataclass(frozen=True)
class Trajectory:
    """A walk of the release, in the axes of geometry.py."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    poses: np.ndarray  # float64 [T, 5]
    keys: np.ndarray  # bool [T, 7]: KEYS of each row
    camera: np.ndarray  # float64 [T, 2]: turn to the left and up, radians
    goals: np.ndarray  # float64 [T, 3], NaN where there is none
    info: dict[str, Any]


# ---- reading ----


def find_trajectories(folder: Path) -> list[Path]:
    """The row files below a folder that have a video, in order."""
    return sorted(path for path in folder.rglob("*.json") if path.with_suffix(".avi").is_file())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a walk. ValueError if the file is not one."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    needed = {"x", "y", "z", "yaw", "pitch", "action", "goal"}
    if not isinstance(rows, list) or len(rows) < 2 or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise ValueError(f"{path} is not a LoopNav walk: a list of rows with {', '.join(sorted(needed))} is expected")
    return rows


def read_trajectory(path: Path, size: int | None = None) -> Trajectory:
    """A walk from its row file and its video. With `size`, frames are cropped to the central square and scaled."""
    rows = read_rows(path)
    frames = read_film(path.with_suffix(".avi"), size)
    if abs(len(frames) - len(rows)) > 1:
        raise ValueError(f"{path} has {len(rows)} rows, but its video has {len(frames)} frames")
    count = min(len(frames), len(rows))  # the last ones may be missing in an interrupted video
    rows = rows[:count]
    poses = np.array([[row["x"], -row["z"], row["y"], row["yaw"] + math.pi / 2, row["pitch"]] for row in rows], np.float64)
    poses[:, 3] = wrap_angle(poses[:, 3])
    keys = np.array([[bool(row["action"].get(key)) for key in KEYS] for row in rows])
    camera = np.array([row["action"].get("camera") or (0, 0) for row in rows], np.float64)
    goals = np.array([[g["x"], -g["z"], g["y"]] if (g := row["goal"]) else [math.nan] * 3 for row in rows], np.float64)
    return Trajectory(frames[:count], poses, keys, camera, goals, dict(rows[0].get("extra_info") or {}))


def alignment(poses: np.ndarray, keys: np.ndarray, camera: np.ndarray) -> int:
    """Which frame the action of row i leads to: i (0) or i + 1 (1).

    The choice is the one with the larger correlation between the motion commanded by keys and camera and the true motion.
    """
    moves = poses[1:, :2] - poses[:-1, :2]
    ahead = keys[:, 0].astype(float) - keys[:, 1]
    left = keys[:, 2].astype(float) - keys[:, 3]
    turns = wrap_angle(np.diff(poses[:, 3]))

    def agreement(of: slice) -> float:
        cos, sin = np.cos(poses[:-1, 3]), np.sin(poses[:-1, 3])
        meant = np.stack([ahead[of] * cos - left[of] * sin, ahead[of] * sin + left[of] * cos], -1)
        return _correlation(meant.ravel(), moves.ravel()) + _correlation(camera[of, 0], turns)

    return int(agreement(slice(0, -1)) >= agreement(slice(1, None)))


def split_of(goals: np.ndarray, start: np.ndarray) -> int:
    """The first row of the way back: the one after the last row with a goal away from the start. 0 if there is no such goal."""
    away = (np.abs(goals[:, :2] - start[:2]) > HOME).any(-1)  # False where there is no goal
    rows = np.flatnonzero(away)
    return 0 if len(rows) == 0 else int(rows[-1]) + 1


def read_episode(path: Path, size: int) -> Episode:
    """A walk as an episode with the ten actions of Minecraft-v0, and the way back as a segment."""
    walk = read_trajectory(path, size)
    shift = alignment(walk.poses, walk.keys, walk.camera)
    if int(walk.info.get("rate", 20)) == RATE:
        index = np.arange(len(walk.frames))
        named = np.array([_action_of(keys, camera) for keys, camera in zip(walk.keys, walk.camera, strict=True)], np.int64)
        actions = np.concatenate([[0], named[:-1] if shift else named[1:]])
    else:
        index, actions = retime(walk.poses, walk.keys[:, KEYS.index("jump")])
    split = split_of(walk.goals, walk.poses[0])
    first = int(np.searchsorted(index, split)) if split else 0
    name = f"loop-{walk.info.get('nvtype', path.parts[-4] if len(path.parts) > 3 else '?')}-{walk.info.get('nvrange', '?')}"
    segments = [Segment("explore", 0)]
    if 0 < first < len(index):
        segments.append(Segment(RETURN, first, tuple(float(v) for v in walk.poses[0, :3])))  # type: ignore[arg-type]
    count = len(index)
    meta = Metadata("LoopNav", _seed_of(walk.info), name, segments=tuple(segments))
    zeros, never = np.zeros(count, np.float32), np.zeros(count, bool)
    return Episode(walk.frames[index], actions, walk.poses[index].astype(np.float32), zeros, never, never.copy(), meta)


def retime(poses: np.ndarray, jumps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide a walk into steps: the last rows [K] of the steps and their actions [K].

    Of the next `AHEAD` rows and the ten actions, each step uses the pair whose true pose and predicted pose differ least. While nothing
    moves, four rows are one idle step. A step forward with a row in which the body jumps becomes a jump.
    """
    stops, actions = [0], [0]
    while stops[-1] < len(poses) - 1:
        here = stops[-1]
        rows = np.arange(here + 1, min(here + 1 + AHEAD, len(poses)))
        there = _seen_from(poses[here], poses[rows])  # [n, 5]
        moved = np.abs(there[:, :2]).sum(-1) + np.abs(there[:, 3:]).sum(-1) * YAW_SCALE
        if moved.max() < 0.05:
            stops.append(int(rows[min(3, len(rows) - 1)]))  # four idle rows are one step
            actions.append(0)
            continue
        error = np.linalg.norm(there[:, None, [0, 1, 3, 4]] * _SCALE - _MOTIONS[None] * _SCALE, axis=-1)  # [n, 10]
        row, action = divmod(int(error.argmin()), len(_MOTIONS))
        if error[row, action] > 0.6 * np.linalg.norm(_MOTIONS[1] * _SCALE):  # nothing fits: use the rows of one step
            row = min(3, len(rows) - 1)
            action = int(error[row].argmin())
        if action == 1 and jumps[here : rows[row] + 1].any():
            action = 5
        stops.append(int(rows[row]))
        actions.append(int(action))
    return np.array(stops), np.array(actions, np.int64)


# ---- writing ----


def write_trajectory(episode: Episode, folder: Path, name: str) -> Path:
    """Write an episode of a loop walker in the released layout below `folder`. Row i has the action after frame i. Returns the row file."""
    task, reach = (episode.meta.walker.split("-") + ["?", "?"])[1:3]
    place = folder / task / reach / f"world_{episode.meta.seed}"
    info = {
        "seed": episode.meta.seed,
        "location": f"world_{episode.meta.seed}",
        "nvtype": task,
        "nvrange": int(reach) if reach.isdigit() else reach,
    }
    yaws = np.unwrap(episode.poses[:, 3].astype(np.float64)) - math.pi / 2
    actions = np.append(episode.actions[1:], 0)
    rows = []
    for i, ((x, y, z, _, pitch), yaw, action) in enumerate(zip(episode.poses.tolist(), yaws.tolist(), actions.tolist(), strict=True)):
        keys, left, up = HANDS[action]
        goal = next((s.goal for s in reversed(episode.meta.segments) if s.first <= i), None)
        rows.append(
            {
                **{axis: round(value, 3) for axis, value in (("x", x), ("y", z), ("z", -y))},
                "yaw": yaw,
                "pitch": pitch,
                "action": {**{key: key in keys for key in KEYS}, "camera": [left * TURN, up * TURN]},
                "goal": None if goal is None else {"x": goal[0], "y": goal[2], "z": -goal[1]},
                "frame_count": i,
                "extra_info": {**info, "rate": RATE},
            }
        )
    path = place / f"{name}.json"
    write_film(path.with_suffix(".avi"), episode.frames, RATE, "MJPG")
    write_atomically(path, json.dumps(rows).encode())
    return path


# ---- parts ----

# forward, left, turn, tilt of each action, and how much each counts
_MOTIONS = np.array(
    [
        [4 * WALK * (("forward" in k) - ("back" in k)), 4 * WALK * (("left" in k) - ("right" in k)), a * TURN, b * TURN]
        for k, a, b in HANDS
    ]
)
_SCALE = np.array([1, 1, YAW_SCALE, YAW_SCALE])


def _seen_from(origin: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Poses [n, 5] relative to a pose [5]: forward, left, up, turn, tilt."""
    dx, dy = (poses[:, :2] - origin[:2]).T
    cos, sin = math.cos(origin[3]), math.sin(origin[3])
    up, turn, tilt = poses[:, 2] - origin[2], wrap_angle(poses[:, 3] - origin[3]), poses[:, 4] - origin[4]
    return np.stack([dx * cos + dy * sin, dy * cos - dx * sin, up, turn, tilt], -1)


def _action_of(keys: np.ndarray, camera: np.ndarray) -> int:
    """The action of a row that `write_trajectory` wrote."""
    held = {key for key, on in zip(KEYS, keys, strict=True) if on}
    row = (held, round(camera[0] / TURN), round(camera[1] / TURN))
    for number, (pressed, left, up) in enumerate(HANDS):
        if row == (set(pressed), left, up):
            return number
    raise ValueError(f"a row with keys {sorted(held)} and camera {camera.tolist()} is not one of the ten actions")


def _seed_of(info: dict[str, Any]) -> int:
    try:
        return int(info.get("seed", 0))
    except (TypeError, ValueError):
        return 0


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 if one of the arrays is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-12 else 0.0
