"""Dream the way back of many loops at once, along their true actions.

Loops are lanes of one batch: explorations of unequal length are aligned at their end, and a lane whose leg has ended leaves the
batch. A lane's noise depends on its own seed alone, so lanes and single loops agree up to the rounding of batched products.
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
from wmgym.data.episode import RETURN, Episode

EVERY = 4  # one in so many steps is also made from true history

Tick = Callable[[int], None]  # frames made


@dataclass(frozen=True)
class Loop:
    """A walk that comes back. Frame t was seen after action t; frames before `split` are exploration, the rest is the leg."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    actions: np.ndarray  # [T] or [T, A]
    poses: np.ndarray  # float32 [T, 5]
    split: int
    seed: int  # of the world

    @property
    def leg(self) -> int:
        """Frames to dream."""
        return len(self.frames) - self.split


def loop_of(episode: Episode) -> Loop:
    """An episode cut where the way back begins and ends; ValueError if it is no loop."""
    split = episode.return_first
    if split is None or split < 1:
        raise ValueError(f"the episode of walker {episode.meta.walker!r} is no loop: it has no frames before a {RETURN!r} segment")
    end = next((s.first for s in episode.meta.segments if s.first > split and s.name != RETURN), len(episode))
    return Loop(episode.frames[:end], episode.actions[:end], episode.poses[:end], split, episode.meta.seed)


@dataclass(frozen=True)
class Dream:
    """A leg as a world dreamed it."""

    frames: np.ndarray  # uint8 [L, H, W, 3]
    poses: np.ndarray  # float32 [L, 5]
    retrieved: np.ndarray  # int64 [L, R]: frames looked at again, by their index in the loop, padded with -1


def dream_legs(world: World, loops: Sequence[Loop], seeds: Sequence[int], lanes: int = 32, tick: Tick = lambda frames: None) -> list[Dream]:
    """Dream each loop's way back along its true actions; `seeds` are of the noise. Loops of like length share a forward."""
    dreams: dict[int, Dream] = {}
    for rows in _groups(loops, lanes):
        parts: dict[int, list[tuple[np.ndarray, ...]]] = {row: [] for row in rows}
        state, alive = _open(world, loops, seeds, rows), len(rows)
        for first in range(0, loops[rows[0]].leg, world.chunk):
            state, alive = _keep(state, alive, sum(loops[row].leg > first for row in rows))
            state, shown = world.step(state, _actions(world, loops, rows[:alive], first))
            pixels, poses = shown.pixels.cpu().numpy(), shown.poses.cpu().numpy()
            retrieved = state.retrieval.indices.cpu().numpy()
            for lane, row in enumerate(rows[:alive]):
                parts[row].append((pixels[lane], poses[lane], retrieved[lane][None].repeat(world.chunk, 0)))
            tick(alive * world.chunk)
        for row in rows:
            frames, poses, retrieved = (np.concatenate(part)[: loops[row].leg] for part in zip(*parts[row], strict=True))
            dreams[row] = Dream(frames, poses, retrieved)
    return [dreams[i] for i in range(len(loops))]


@dataclass(frozen=True)
class NextFrames:
    """Single frames of a leg, each made from the true frames before it."""

    steps: np.ndarray  # int64 [K]: which frames of the leg
    frames: np.ndarray  # uint8 [K, H, W, 3]


def next_frames(
    world: World, loops: Sequence[Loop], seeds: Sequence[int], lanes: int = 32, every: int = EVERY, tick: Tick = lambda frames: None
) -> list[NextFrames]:
    """Every so many steps of each leg, the next frame from true history: no error is fed back."""
    made: dict[int, list[np.ndarray]] = {i: [] for i in range(len(loops))}
    for rows in _groups(loops, lanes):
        state, alive = _open(world, loops, seeds, rows), len(rows)
        for first in range(0, loops[rows[0]].leg, every):
            state, alive = _keep(state, alive, sum(loops[row].leg > first for row in rows))
            fresh = replace(state, keys=rng.fold(state.keys, first))
            pixels = world.step(fresh, _actions(world, loops, rows[:alive], first))[1].pixels[:, 0].cpu().numpy()
            for lane, row in enumerate(rows[:alive]):
                made[row].append(pixels[lane])
            tick(alive)
            state, alive = _keep(state, alive, sum(loops[row].leg > first + every for row in rows))
            if alive:
                parts = [slice(loops[row].split + first, loops[row].split + first + every) for row in rows[:alive]]
                state = world.observe(state, clip_of([loops[row] for row in rows[:alive]], parts, world.device))
    return [NextFrames(steps_made(loop, every), np.stack(made[i])) for i, loop in enumerate(loops)]


def steps_made(loop: Loop, every: int = EVERY) -> np.ndarray:
    """Which frames of a leg `next_frames` makes."""
    return np.arange(0, loop.leg, every)


def _groups(loops: Sequence[Loop], lanes: int) -> list[list[int]]:
    """Loops that share a batch, longest leg first: those still under way are always the first ones."""
    order = sorted(range(len(loops)), key=lambda i: -loops[i].leg)
    return [order[i : i + lanes] for i in range(0, len(order), lanes)]


def _open(world: World, loops: Sequence[Loop], seeds: Sequence[int], rows: Sequence[int]) -> WorldState:
    """A world that has seen each row's exploration."""
    parts = [slice(0, loops[row].split) for row in rows]
    keys = rng.make_keys([seeds[row] for row in rows], world.device)
    return world.start(clip_of([loops[row] for row in rows], parts, world.device), keys)


def _keep(state: WorldState, alive: int, count: int) -> tuple[WorldState, int]:
    """The first `count` of the lanes."""
    if 0 < count < alive:
        state = tree.select(state, torch.arange(count, device=state.times.device))
    return state, count


def _actions(world: World, loops: Sequence[Loop], rows: Sequence[int], first: int) -> Tensor:
    """The true actions of one chunk; after the end of a leg, zeros, whose frames nobody looks at."""
    chunks = []
    for row in rows:
        begin = loops[row].split + first
        taken = loops[row].actions[begin : begin + world.chunk]
        chunks.append(np.concatenate([taken, np.zeros((world.chunk - len(taken), *taken.shape[1:]), taken.dtype)]))
    return torch.from_numpy(np.stack(chunks)).to(world.device)


class Recorded(Protocol):
    """Frame t was seen after action t."""

    @property
    def frames(self) -> np.ndarray: ...

    @property
    def actions(self) -> np.ndarray: ...

    @property
    def poses(self) -> np.ndarray: ...


def clip_of(loops: Sequence[Recorded], parts: Sequence[slice], device: Any) -> Clip:
    """A part of each recording as one clip, aligned at the end."""
    longest = max(part.stop - part.start for part in parts)

    def stack(name: str) -> Tensor:
        rows = []
        for loop, part in zip(loops, parts, strict=True):
            value = getattr(loop, name)[part]
            rows.append(np.concatenate([np.zeros((longest - len(value), *value.shape[1:]), value.dtype), value]))
        return torch.from_numpy(np.stack(rows)).to(device)

    lengths = torch.tensor([part.stop - part.start for part in parts])
    valid = torch.arange(longest) >= longest - lengths[:, None]
    return Clip(stack("frames"), stack("actions"), stack("poses"), valid.to(device))
