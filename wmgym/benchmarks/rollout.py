"""Dream the second part of many recorded walks at once, along their true actions.

Walks are lanes of one batch. Observed parts of unequal length are aligned at their end, and a lane leaves the batch when its walk ends.
A lane's noise depends only on its own seed, so a walk gives the same dream in any batch, up to the rounding of batched matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wmgym import rng, tree
from wmgym.core import Clip, World, WorldState
from wmgym.data.depth import DepthCamera

EVERY = 4  # steps between two frames that are made from true history

Tick = Callable[[int], None]  # number of frames made since the last call


@dataclass(frozen=True)
class Walk:
    """A recorded walk. Frame t was seen after action t. Frames before `split` are observed; the rest, the leg, is dreamed."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    actions: np.ndarray  # [T] or [T, A]
    poses: np.ndarray  # float32 [T, 5]
    split: int
    seed: int  # of the true world
    depth: np.ndarray | None = None  # float32 [T, H, W] (`data/depth.py`)
    camera: DepthCamera | None = None  # of the depth

    @property
    def leg(self) -> int:
        """How many frames are dreamed."""
        return len(self.frames) - self.split


@dataclass(frozen=True)
class Dream:
    """A leg as a world dreamed it."""

    frames: np.ndarray  # uint8 [L, H, W, 3]
    poses: np.ndarray  # float32 [L, 5]
    retrieved: np.ndarray  # int64 [L, R]: which frames of the walk the memory retrieved, padded with -1


def dream_legs(
    world: World,
    walks: Sequence[Walk],
    seeds: Sequence[int],
    lanes: int = 32,
    tick: Tick = lambda frames: None,
    block: int | None = None,
) -> list[Dream]:
    """Dream each walk's leg along its true actions. `seeds` seed the noise, one per walk. Walks of similar length share a batch.

    block: the true frames are observed after each so many dreamed ones, and the dream goes on from there.
    """
    dreams: dict[int, Dream] = {}
    for rows in _groups(walks, lanes):
        parts: dict[int, list[tuple[np.ndarray, ...]]] = {row: [] for row in rows}
        longest = walks[rows[0]].leg
        true, left = _open(world, walks, seeds, rows), len(rows)
        for begin in range(0, longest, block or longest):
            end = min(begin + (block or longest), longest)
            true, left = _keep(true, left, sum(walks[row].leg > begin for row in rows))
            state, alive = replace(true, keys=rng.fold(true.keys, begin)) if begin else true, left
            for first in range(begin, end, world.chunk):
                state, alive = _keep(state, alive, sum(walks[row].leg > first for row in rows))
                state, shown = world.step(state, _actions(world, walks, rows[:alive], first))
                shown.check()
                pixels, poses = shown.pixels.cpu().numpy(), shown.poses.cpu().numpy()
                retrieved = state.retrieval.indices.cpu().numpy()[:, None].repeat(world.chunk, 1)
                for lane, row in enumerate(rows[:alive]):
                    parts[row].append(tuple(part[lane, : end - first] for part in (pixels, poses, retrieved)))
                tick(alive * min(world.chunk, end - first))
            true, left = _keep(true, left, sum(walks[row].leg > end for row in rows))
            if left:
                true = _observe(world, true, walks, rows[:left], begin, end)
        for row in rows:
            frames, poses, retrieved = (np.concatenate(part)[: walks[row].leg] for part in zip(*parts[row], strict=True))
            dreams[row] = Dream(frames, poses, retrieved)
    return [dreams[i] for i in range(len(walks))]


def _observe(world: World, state: WorldState, walks: Sequence[Walk], rows: Sequence[int], begin: int, end: int) -> WorldState:
    """The state after these rows' true frames `begin` to `end` of their legs."""
    parts = [slice(walks[row].split + begin, walks[row].split + end) for row in rows]
    return world.observe(state, clip_of([walks[row] for row in rows], parts, world.device))


@dataclass(frozen=True)
class NextFrames:
    """Single frames of a leg, each made from the true frames before it."""

    steps: np.ndarray  # int64 [K]: which frames of the leg
    frames: np.ndarray  # uint8 [K, H, W, 3]


def next_frames(
    world: World, walks: Sequence[Walk], seeds: Sequence[int], lanes: int = 32, every: int = EVERY, tick: Tick = lambda frames: None
) -> list[NextFrames]:
    """One frame in `every` of each leg, made from true history, so that no error accumulates."""
    made: dict[int, list[np.ndarray]] = {i: [] for i in range(len(walks))}
    for rows in _groups(walks, lanes):
        state, alive = _open(world, walks, seeds, rows), len(rows)
        for first in range(0, walks[rows[0]].leg, every):
            state, alive = _keep(state, alive, sum(walks[row].leg > first for row in rows))
            fresh = replace(state, keys=rng.fold(state.keys, first))
            shown = world.step(fresh, _actions(world, walks, rows[:alive], first))[1]
            shown.check()
            pixels = shown.pixels[:, 0].cpu().numpy()
            for lane, row in enumerate(rows[:alive]):
                made[row].append(pixels[lane])
            tick(alive)
            state, alive = _keep(state, alive, sum(walks[row].leg > first + every for row in rows))
            if alive:
                state = _observe(world, state, walks, rows[:alive], first, first + every)
    return [NextFrames(steps_made(walk, every), np.stack(made[i])) for i, walk in enumerate(walks)]


def steps_made(walk: Walk, every: int = EVERY) -> np.ndarray:
    """Which frames of a leg `next_frames` makes."""
    return np.arange(0, walk.leg, every)


def _groups(walks: Sequence[Walk], lanes: int) -> list[list[int]]:
    """Walks that share a batch, longest leg first, so that the walks still under way are always the first lanes."""
    order = sorted(range(len(walks)), key=lambda i: -walks[i].leg)
    return [order[i : i + lanes] for i in range(0, len(order), lanes)]


def _open(world: World, walks: Sequence[Walk], seeds: Sequence[int], rows: Sequence[int]) -> WorldState:
    """A world that has observed each row's frames before the split."""
    parts = [slice(0, walks[row].split) for row in rows]
    keys = rng.make_keys([seeds[row] for row in rows], world.device)
    return world.start(clip_of([walks[row] for row in rows], parts, world.device), keys)


def _keep(state: WorldState, alive: int, count: int) -> tuple[WorldState, int]:
    """The first `count` lanes."""
    if 0 < count < alive:
        state = tree.select(state, torch.arange(count, device=state.times.device))
    return state, count


def _actions(world: World, walks: Sequence[Walk], rows: Sequence[int], first: int) -> Tensor:
    """The true actions of one chunk, padded with zeros after the end of a leg; the frames made by the padding are dropped."""
    chunks = []
    for row in rows:
        begin = walks[row].split + first
        taken = walks[row].actions[begin : begin + world.chunk]
        chunks.append(np.concatenate([taken, np.zeros((world.chunk - len(taken), *taken.shape[1:]), taken.dtype)]))
    return torch.from_numpy(np.stack(chunks)).to(world.device)


class Recorded(Protocol):
    """Frames, actions and poses of one recording. Frame t was seen after action t."""

    @property
    def frames(self) -> np.ndarray: ...

    @property
    def actions(self) -> np.ndarray: ...

    @property
    def poses(self) -> np.ndarray: ...


def clip_of(recordings: Sequence[Recorded], parts: Sequence[slice], device: Any) -> Clip:
    """A part of each recording as one clip, aligned at the end."""
    longest = max(part.stop - part.start for part in parts)

    def stack(name: str) -> Tensor:
        rows = []
        for recording, part in zip(recordings, parts, strict=True):
            value = getattr(recording, name)[part]
            rows.append(np.concatenate([np.zeros((longest - len(value), *value.shape[1:]), value.dtype), value]))
        return torch.from_numpy(np.stack(rows)).to(device)

    lengths = torch.tensor([part.stop - part.start for part in parts])
    valid = torch.arange(longest) >= longest - lengths[:, None]
    return Clip(stack("frames"), stack("actions"), stack("poses"), valid.to(device))
