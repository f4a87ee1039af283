"""Scenes with a landmark that no generated world has, for returns (Echo-Memory): seen, left by turning away, and seen again.

    look aside and back     turn right      wait, looking away      turn back
    16 frames, observed     the leg: what a world dreams

A scene is a place and heading in a world with room for a landmark ahead, a little to the left. A variant is a landmark of a shape that the
world generator does not build, or of a colour that it does not use. The walk is recorded with each variant and without any, so that it is
known exactly which pixels each covers. The ground truth must be able to set blocks (`metadata["builds"]`) and to measure depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from wmgym.agents.paths import OPENING, Motions, look_aside
from wmgym.benchmarks.judges import Case
from wmgym.benchmarks.rollout import Walk

SHAPES = {  # seen from the front
    "cross": ("..#..", "..#..", "#####", "..#..", "..#.."),
    "ring": (".###.", "#...#", "#...#", "#...#", ".###."),
    "stairs": ("....#", "...##", "..###", ".####", "#####"),
    "tee": ("#####", "#####", "..#..", "..#..", "..#.."),
    "slab": (".###.", ".###.", ".###.", ".###.", ".###."),
}
VARIANTS = (  # shapes that are new, in colours that are not; then colours that are new
    ("cross", "red"), ("ring", "blue"), ("stairs", "yellow"), ("tee", "purple"),
    ("slab", "pink"), ("slab", "turquoise"), ("slab", "maroon"), ("slab", "navy"),
)  # fmt: skip
SIDE = 5  # blocks: height and width of a shape
ASIDE = math.radians(12)  # how far left of the heading the landmark stands
DISTANCES = (8.0, 7.0, 9.0)  # blocks
CLIMB = 1  # blocks: how far the landmark's foot may stand above the agent's; below them an edge would hide it
LEAST = 0.02  # share of the frame that a landmark covers
CONTRAST = 24.0  # grey levels between a landmark and what it hides
NEARER = 0.9  # share of the landmark's distance at which something stands in front of it
TRIES = 200  # worlds that are searched for one scene

Blocks = dict[tuple[int, int, int], str]


@dataclass(frozen=True)
class Film:
    """The walk of a scene with one landmark, or with none."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    depth: np.ndarray  # float32 [T, H, W]
    poses: np.ndarray  # float32 [T, 5]


@dataclass(frozen=True)
class Scene:
    """All films of a scene. The first OPENING frames are observed."""

    seed: int
    actions: np.ndarray  # int64 [T]
    poses: np.ndarray  # float32 [T, 5]
    out: int  # frames of the leg in which the camera turns away
    frames: np.ndarray  # uint8 [V, T, H, W, 3]: with each of VARIANTS
    masks: np.ndarray  # bool [V, H, W]: pixels of each in the last frame
    empty: np.ndarray  # uint8 [H, W, 3]: the last frame without any

    def case(self, number: int, variant: int) -> Case:
        """The case of one variant. The next variant is what replaces it behind the agent's back."""
        walk = Walk(self.frames[variant], self.actions, self.poses, OPENING, self.seed)
        other = (variant + 1) % len(VARIANTS)
        name = f"{number}-{'-'.join(VARIANTS[variant])}"
        return Case(name, number, walk, self.out, self.masks[variant], self.empty, self.frames[other, -1], self.masks[other])


def way_there_and_back(motions: Motions, away: float, wait: int) -> tuple[list[int], int]:
    """The actions of the leg: turn right by `away` radians, wait, turn back. Returns them and the number of turns away."""
    turns = motions.turns(-away)
    return [*turns, *[0] * wait, *motions.reverse(turns)], len(turns)


def find_scene(env: gym.Env, seeds: Iterator[int], motions: Motions, away: float, wait: int) -> Scene:
    """The next scene in the worlds of `seeds`. ValueError if `TRIES` worlds have none.

    In a scene each variant is in view at first, entirely out of view before the camera turns back, and in the same view again at the end.
    """
    way, out = way_there_and_back(motions, away, wait)
    actions = np.array([0, *look_aside(motions), *way], np.int64)
    for seed in itertools.islice(seeds, TRIES):
        _, info = env.reset(seed=seed)
        for place, blocks in _places(env, np.asarray(info["pose"], np.float64), motions.turn):
            scene = _recorded(env, seed, place, blocks, actions, out, wait)
            if scene is not None:
                return scene
    raise ValueError(f"no scene for a landmark in {TRIES} worlds; a smaller turn away or another seed may help")


def _places(env: gym.Env, pose: np.ndarray, turn: float) -> Iterator[tuple[np.ndarray, tuple[Blocks, ...]]]:
    """Start poses with room for the landmarks, and the blocks of each variant there."""
    for step in range(round(math.tau / turn)):
        place = pose.copy()
        place[3] = math.remainder(pose[3] + step * turn, math.tau)
        for distance in DISTANCES:
            cells = _cells(env, place, distance)
            if cells is not None:
                yield place, tuple(_blocks(cells, *variant) for variant in VARIANTS)
                break


def _cells(env: gym.Env, pose: np.ndarray, distance: float) -> np.ndarray | None:
    """Cells [SIDE rows from the top, SIDE columns from the left, 3] of an upright square that faces the agent, or None without room."""
    bearing = pose[3] + ASIDE
    ahead = math.cos(bearing), math.sin(bearing)
    x, y = (math.floor(pose[i] + distance * ahead[i]) for i in range(2))
    foot = math.floor(pose[2] + 0.5)
    solid: Any = env.unwrapped.solid  # type: ignore[attr-defined]
    ground = solid((x, y, foot - 2), (x + 1, y + 1, foot + 2))[0, 0]
    top = foot - 2 + (int(np.flatnonzero(ground)[-1]) + 1 if ground.any() else -9)
    if not 0 <= top - foot <= CLIMB:
        return None
    along = np.arange(SIDE) - SIDE // 2  # to the right
    right = (0, -int(math.copysign(1, ahead[0]))) if abs(ahead[0]) >= abs(ahead[1]) else (int(math.copysign(1, ahead[1])), 0)
    cells = np.empty((SIDE, SIDE, 3), np.int64)
    cells[..., 0], cells[..., 1] = x + along * right[0], y + along * right[1]
    cells[..., 2] = top + SIDE - 1 - np.arange(SIDE)[:, None]
    low, high = cells.reshape(-1, 3).min(0), cells.reshape(-1, 3).max(0) + 1
    return None if solid(tuple(low.tolist()), tuple(high.tolist())).any() else cells


def _blocks(cells: np.ndarray, shape: str, colour: str) -> Blocks:
    drawn = np.array([[c == "#" for c in row] for row in SHAPES[shape]])
    return dict.fromkeys(((x, y, z) for x, y, z in cells[drawn].tolist()), colour)


def _recorded(
    env: gym.Env, seed: int, place: np.ndarray, blocks: Sequence[Blocks], actions: np.ndarray, out: int, wait: int
) -> Scene | None:
    """The films of a place; None if a variant is not seen well, or is still seen when the camera has turned away."""
    empty = _film(env, seed, place, {}, actions)
    if abs(empty.poses - empty.poses[0])[-1].max() > 1e-3:  # it was pushed, for example by water
        return None
    films, masks = [], []
    away = slice(OPENING + out - 1, OPENING + out + wait)
    for each in blocks:
        film = _film(env, seed, place, each, actions)
        mask = film.depth < empty.depth - 1e-3
        last = mask[-1]
        apart = np.abs(film.frames[-1].astype(np.float64) - empty.frames[-1]).mean(-1)
        if last.mean() < LEAST or mask[away].any() or apart[last].mean() < CONTRAST or last[:, [0, -1]].any():
            return None
        if _hidden(empty.depth[-1], last, film.depth[-1][last].min()):
            return None
        films.append(film)
        masks.append(last)
    frames = np.stack([film.frames for film in films])
    return Scene(seed, actions, empty.poses, out, frames, np.stack(masks), empty.frames[-1])


def _hidden(depth: np.ndarray, mask: np.ndarray, distance: float) -> bool:
    """Whether something that stands in front of the landmark covers a part of it, or touches it in the view; the ground at its foot may."""
    (top, bottom), (left, right) = ((int(x[0]), int(x[-1]) + 1) for x in map(np.flatnonzero, (mask.any(1), mask.any(0))))
    pad = max(1, len(mask) // 16)
    return bool((depth[max(top - pad, 0) : bottom - pad, max(left - pad, 0) : right + pad] < NEARER * distance).any())


def _film(env: gym.Env, seed: int, place: np.ndarray, blocks: Blocks, actions: np.ndarray) -> Film:
    _, info = env.reset(seed=seed, options={"start": place})
    world: Any = env.unwrapped
    world.build(blocks)
    rows = [(env.render(), world.depth(), info["pose"])]
    for action in actions[1:]:
        info = env.step(int(action))[-1]
        rows.append((env.render(), world.depth(), info["pose"]))
    frames, depth, poses = (np.stack(part) for part in zip(*rows, strict=True))
    return Film(frames, depth, poses)
