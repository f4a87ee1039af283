"""Openings: the frames that an episode of a dream starts with, and where they come from.

`LiveOpenings` steps the ground truth, `ClipOpenings` draws from given clips, `DriveOpenings` from recorded drives. Dream, twin and
evaluation all draw the random choices of an opening with `plan_opening`, so that the same seed gives them the same opening. The frames
then follow from the plan.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import gymnasium as gym
import numpy as np

from wmgym.data import recon
from wmgym.episode import noise_seed
from wmgym.files import write_atomically

OPENING_KEYS = ("frames", "actions", "poses")


@dataclass(frozen=True)
class Opening:
    """The opening of one lane: frame t was observed *after* action t. The episode continues from the last frame."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    actions: np.ndarray  # int64 [T], or float32 [T, A]
    poses: np.ndarray  # float32 [T, 5]
    goal: np.ndarray | None = None  # pose [5], or a goal frame uint8 [H, W, 3]
    seed: int | None = None  # seed with which the ground truth starts at the first frame; None if unknown


@dataclass(frozen=True)
class OpeningPlan:
    """The random choices of an opening, before its frames are made."""

    seed: int | None  # of the ground truth's world; None: there is no such truth
    actions: Sequence[Any]  # actions of the ground truth after its reset
    choice: Any = None  # which clip or drive


class Openings(Protocol):
    """Source of the openings of episodes whose `reset` gives none."""

    def plan(self, rng: np.random.Generator, seed: int | None) -> OpeningPlan:
        """Draw an opening. `seed`: the argument of `reset`, or None."""
        ...

    def show(self, plan: OpeningPlan) -> Opening:
        """The opening of a plan. It draws no random numbers."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...


def plan_opening(openings: Openings | None, rng: np.random.Generator, seed: int | None) -> tuple[int, OpeningPlan | None]:
    """Draw what the start of an episode takes from `np_random`, always in this order: the seed of its noise, then the plan of its opening
    (None without `openings`, if the caller gives the opening)."""
    return noise_seed(rng), openings.plan(rng, seed) if openings is not None else None


def frame_of(observation: Any) -> np.ndarray:
    """The frame in an observation of a ground truth."""
    return observation["pov" if "pov" in observation else "image"] if isinstance(observation, Mapping) else observation


def walk(env: gym.Env, plan: OpeningPlan, options: dict[str, Any] | None = None) -> tuple[Opening, Any, dict[str, Any]]:
    """Reset a ground truth and take the actions of a plan. Returns the opening, and the last observation and info."""
    if plan.seed is None:
        raise ValueError("this opening has no seed of the ground truth, so the ground truth cannot start there")
    observation, info = env.reset(seed=plan.seed, options=options)
    frames, poses = [frame_of(observation)], [info["pose"]]
    for action in plan.actions:
        observation, _, _, _, info = env.step(action)
        frames.append(frame_of(observation))
        poses.append(info["pose"])
    taken = np.stack([np.zeros_like(plan.actions[0]), *plan.actions]) if len(plan.actions) else np.zeros(1, np.int64)
    return Opening(np.stack(frames), taken, np.stack(poses), info.get("goal"), plan.seed), observation, info


class LiveOpenings:
    """Openings from stepping the ground truth with fixed actions. It is made on first use and kept until `close`.

    walks_itself: the ground truth walks the opening in its `reset`, and has its frames, actions and poses in `walked` (tasks with
    `goes_back`).
    """

    def __init__(self, twin: str, actions: Sequence[int], *, walks_itself: bool = False, **kwargs: Any) -> None:
        self._twin, self._kwargs, self._walks_itself = twin, kwargs, walks_itself
        self._actions = [np.int64(a) for a in actions]
        self._env: gym.Env | None = None

    def plan(self, rng: np.random.Generator, seed: int | None) -> OpeningPlan:
        return OpeningPlan(int(rng.integers(2**31)) if seed is None else seed, self._actions)

    def show(self, plan: OpeningPlan) -> Opening:
        if self._env is None:
            self._env = gym.make(self._twin, disable_env_checker=True, **self._kwargs)
        opening = walk(self._env, plan)[0]
        return replace(opening, **self._env.unwrapped.walked) if self._walks_itself else opening  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class ClipOpenings:
    """For each episode one of several clips, drawn at random."""

    def __init__(self, clips: Sequence[Opening]) -> None:
        if not clips:
            raise ValueError("no opening clips were given")
        self._clips = list(clips)

    def plan(self, rng: np.random.Generator, seed: int | None) -> OpeningPlan:
        number = int(rng.integers(len(self._clips)))
        clip = self._clips[number]
        return OpeningPlan(clip.seed, list(clip.actions[1:]), number)

    def show(self, plan: OpeningPlan) -> Opening:
        return self._clips[plan.choice]

    def close(self) -> None:
        pass


class DriveOpenings:
    """Openings from recorded drives. The goal is a pose later in the drive."""

    SEEN, AHEAD = 32, 8  # greatest length of an opening; distance to the goal, both in frames

    def __init__(self, folder: Path, size: int) -> None:
        self.dataset = recon.read_dataset(folder)
        self._paths, self._size = recon.list_trajectories(folder), size

    def plan(self, rng: np.random.Generator, seed: int | None) -> OpeningPlan:
        for _ in range(64):
            path = self._paths[int(rng.integers(len(self._paths)))]
            frames = len(recon.read_trajectory(path))
            if frames > self.AHEAD + 1:
                return OpeningPlan(None, (), (path, int(rng.integers(frames - self.AHEAD))))
        raise ValueError(f"of 64 drives drawn from {self._paths[0].parent} none has more than {self.AHEAD + 1} frames: add longer drives")

    def show(self, plan: OpeningPlan) -> Opening:
        path, now = plan.choice
        drive = recon.read_trajectory(path)
        seen = slice(max(0, now + 1 - self.SEEN), now + 1)
        actions = recon.to_actions(drive, self.dataset.displacement)[seen]
        frames = drive.frames(range(seen.start, seen.stop), self._size)
        return Opening(frames, actions, drive.poses[seen], drive.poses[now + self.AHEAD])

    def close(self) -> None:
        pass


def read_clips(path: Path) -> ClipOpenings:
    """Bundled openings from an .npz with frames [K, T, H, W, 3], actions [K, T], poses [K, T, 5], seeds [K], and maybe goals [K, 5]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ValueError(f"opening='bundled' needs the opening clips {path}, which are not there; give opening='live' or options") from None
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is not a file of opening clips: {error}") from None
    missing = [key for key in (*OPENING_KEYS, "seeds") if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    goals = arrays.get("goals", [None] * len(arrays["seeds"]))
    rows = zip(*(arrays[key] for key in OPENING_KEYS), goals, arrays["seeds"], strict=True)
    return ClipOpenings([Opening(frames, actions, poses, goal, int(seed)) for frames, actions, poses, goal, seed in rows])


def write_clips(path: Path, clips: Sequence[Opening]) -> None:
    """Write openings of equal length, each with a seed, for `read_clips`. Compression is lossless."""
    columns = {key: np.stack([getattr(clip, key) for clip in clips]) for key in OPENING_KEYS}
    columns["seeds"] = np.array([clip.seed for clip in clips], np.int64)
    if all(clip.goal is not None for clip in clips):
        columns["goals"] = np.stack([clip.goal for clip in clips if clip.goal is not None])
    content = io.BytesIO()
    np.savez_compressed(content, **columns)  # type: ignore[arg-type]  # the stubs take the arrays for its keywords
    write_atomically(path, content.getvalue())


def check_opening(opening: Any, frame_shape: tuple[int, ...], action_space: gym.Space, name: str = "opening") -> Opening:
    """Check an opening given by a user; `action_space` is the space of one frame's action. A wrong part raises `ValueError`."""
    if not isinstance(opening, Mapping) or not all(key in opening for key in OPENING_KEYS):
        has = sorted(opening) if isinstance(opening, Mapping) else type(opening).__name__
        raise ValueError(f"{name} must be a dict with frames, actions and poses, got {has}")
    frames = np.asarray(opening["frames"])
    actions, poses = np.asarray(opening["actions"]), np.asarray(opening["poses"])
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != tuple(frame_shape):
        raise ValueError(f"{name} frames must be uint8 [T, {', '.join(map(str, frame_shape))}], got {frames.dtype} {list(frames.shape)}")
    if len(frames) == 0:
        raise ValueError(f"{name} must hold at least one frame")
    if poses.shape != (len(frames), 5):
        raise ValueError(f"{name} poses must be float32 [{len(frames)}, 5] for {len(frames)} frames, got {list(poses.shape)}")
    if poses.dtype.kind not in "fiu" or not np.isfinite(poses).all():
        raise ValueError(f"{name} poses must be finite numbers")
    return Opening(frames, _check_actions(actions, len(frames), action_space, name), poses.astype(np.float32))


def _check_actions(actions: np.ndarray, length: int, space: gym.Space, name: str) -> np.ndarray:
    if isinstance(space, gym.spaces.Discrete):
        if actions.shape != (length,) or actions.dtype.kind not in "iu":
            raise ValueError(f"{name} actions must be integers [{length}] for {length} frames, got {actions.dtype} {list(actions.shape)}")
        if actions.min() < 0 or actions.max() >= space.n:
            raise ValueError(f"{name} actions must lie in [0, {space.n}), got {actions.min()} to {actions.max()}")
        return actions.astype(np.int64)
    assert isinstance(space, gym.spaces.Box)
    if actions.shape != (length, *space.shape) or actions.dtype.kind not in "fiu":
        shape = [length, *space.shape]
        raise ValueError(f"{name} actions must be floats {shape} for {length} frames, got {actions.dtype} {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise ValueError(f"{name} actions must be finite numbers")
    return actions.astype(np.float32)


def check_goal(goal: Any, pose: np.ndarray, frame_shape: tuple[int, ...]) -> np.ndarray:
    """A goal pose [5] from (x, y) or a full pose; a goal frame is returned unchanged.

    For (x, y) the height is that of `pose`, and yaw and pitch are 0.
    """
    array = np.asarray(goal)
    if array.ndim == 3:
        if array.dtype != np.uint8 or array.shape != tuple(frame_shape):
            raise ValueError(f"a goal frame must be uint8 {list(frame_shape)}, got {array.dtype} {list(array.shape)}")
        return array
    if array.shape not in ((2,), (5,)) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"goal must be a finite pose of 2 or 5 numbers, or a frame, got {goal!r}")
    out = np.array([0, 0, pose[2], 0, 0], np.float32)
    out[: len(array)] = array
    return out
