"""The voxel world as a Minecraft engine (see ../backend.py): one body in the world of a seed, or many lanes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from wmgym.envs.checks import check_pose
from wmgym.envs.minecraft.backend import Pose
from wmgym.envs.minecraft.voxel import physics, render
from wmgym.envs.minecraft.voxel.blocks import AIR, WATER
from wmgym.envs.minecraft.voxel.edit import edited, numbered
from wmgym.envs.minecraft.voxel.textures import atlas
from wmgym.envs.minecraft.voxel.world import DEPTH, WIDTH, VoxelWorld, generate

_in_use: WeakValueDictionary[int, VoxelWorld] = WeakValueDictionary()


@lru_cache(maxsize=8)
def world_of(seed: int) -> VoxelWorld:
    """The world of a seed (12 MB). Worlds in use are shared, and the newest eight are cached, so that returning to one is quick."""
    world = _in_use.get(seed)
    if world is None:
        world = _in_use[seed] = generate(seed)
    return world


def _edited(seed: int, built: Mapping[str, int]) -> VoxelWorld:
    cells = {}
    for cell, number in built.items():
        x, y, z = map(int, cell.split(","))
        cells[x, y, z] = number
    return edited(world_of(seed), cells)


def start_of(world: VoxelWorld, seed: int) -> Pose:
    """The start pose of a seed: on dry open ground, mostly near buildings, in one of 24 directions."""
    rng = np.random.default_rng([seed, 0x57A7])
    x, y, z = world.starts[rng.integers(max(1, int(0.7 * len(world.starts))))]
    yaw = (rng.integers(24) - 12) * math.pi / 12
    return np.array([x + 0.5, y + 0.5, z, yaw, 0], np.float32)


def check_start(world: VoxelWorld, start: Any) -> Pose:
    """A start pose at which a body fits, or ValueError."""
    pose = check_pose("start", start)
    x, y, z = (float(v) for v in pose[:3])
    if not (0 <= x < WIDTH and 0 <= y < WIDTH and 0 <= z < DEPTH):
        raise ValueError(f"start must lie within the world, (0, 0, 0) to ({WIDTH}, {WIDTH}, {DEPTH}), got {(x, y, z)}")
    if physics.blocked(world.grid, x, y, z):
        raise ValueError(f"start must leave room for a body 0.6 wide and 1.8 high, but there is a block at {(x, y, z)}")
    if abs(pose[4]) > math.pi / 2 + 1e-6:
        raise ValueError(f"start must have a pitch within [-pi/2, pi/2], got {float(pose[4])}")
    return pose


def pose_of(body: NDArray[np.float64]) -> Pose:
    """Bodies [..., 7] -> poses [..., 5]. A yaw that float32 rounds up to pi becomes -pi."""
    pose = body[..., :5].astype(np.float32)
    pose[..., 3] = np.where(pose[..., 3] >= np.float32(math.pi), np.float32(-math.pi), pose[..., 3])
    return pose


_FIRST = np.zeros(1, np.int64)


class VoxelBackend:
    """One body in the world of a seed."""

    field_of_view = render.FIELD_OF_VIEW
    eyes = physics.EYES
    bounds = ((0, 0, 0), (WIDTH, WIDTH, DEPTH))
    ending = ""

    def __init__(self, body: NDArray[np.float64] | None = None) -> None:
        """body: the array that holds the body's state, float64 [7]; by default a new one."""
        self._seed = -1
        self._world: VoxelWorld | None = None
        self._body = np.zeros(7) if body is None else body
        self._built: dict[str, int] = {}  # "x,y,z" -> block or 0: what `build` has set in the world of the seed

    def reset(self, seed: int, start: Pose | None) -> Pose:
        world = world_of(seed)
        pose = start_of(world, seed) if start is None else check_start(world, start)
        self._seed, self._world, self._built = seed, world, {}
        self._body[:] = physics.body_at(pose)
        return pose_of(self._body)

    def step(self, action: int) -> Pose:
        physics.step_lanes(self.world.addresses, self.world.grid.shape, self._body[None], np.array([action]))
        return pose_of(self._body)

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        frames = np.empty((1, height, width, 3), np.uint8)
        render.draw_lanes(self.world.addresses, self.world.grid.shape, atlas(), self._body[None], physics.EYES, _FIRST, frames)
        return frames[0]

    def depth(self, height: int, width: int) -> NDArray[np.float32]:
        depth = np.full((height, width), np.inf, np.float32)
        x, y, z, yaw, pitch = self._body[:5]
        render.measure(self.world.grid, self.world.above, x, y, z + physics.EYES, yaw, pitch, depth)
        return depth

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        box = np.ones(np.maximum(np.subtract(high, low), 0), np.bool_)
        first, last = np.clip(low, 0, (WIDTH, WIDTH, DEPTH)), np.clip(high, 0, (WIDTH, WIDTH, DEPTH))
        if (last > first).all():
            cells = self.world.grid[tuple(slice(a, b) for a, b in zip(first, last))]
            box[tuple(slice(a, b) for a, b in zip(first - low, last - low))] = (cells < AIR) & (cells != WATER)
        return box

    def build(self, blocks: Mapping[tuple[int, int, int], str]) -> None:
        present = self.world
        built = self._built | {",".join(map(str, cell)): number for cell, number in numbered(present, blocks).items()}
        world = _edited(self._seed, built)
        if physics.blocked(world.grid, *(float(v) for v in self._body[:3])):
            raise ValueError(f"a block cannot be set where the body stands, at {tuple(float(v) for v in self._body[:3])}")
        self._world, self._built = world, built

    def reachable(self, x: float, y: float) -> bool:
        return 0 <= x < WIDTH and 0 <= y < WIDTH and bool(self.world.walkable[int(x), int(y)])

    def save(self) -> dict[str, Any]:
        built = " ".join(f"{cell}:{number}" for cell, number in self._built.items())  # one entry, so that all states are alike
        return {"seed": self._seed, "body": self._body.copy(), "built": built}

    def load(self, state: dict[str, Any]) -> Pose:
        self._seed, self._built = state["seed"], {}
        for entry in state.get("built", "").split():
            cell, _, number = entry.partition(":")
            self._built[cell] = int(number)
        self._world = _edited(self._seed, self._built) if self._built else world_of(self._seed)
        self._body[:] = state["body"]
        return pose_of(self._body)

    def close(self) -> None:
        self._world = None

    @property
    def world(self) -> VoxelWorld:
        if self._world is None:
            raise RuntimeError("the engine has no world before reset")
        return self._world


class VoxelLanes:
    """Many voxel worlds with one body each. One call moves all bodies, one call draws all views."""

    def __init__(self, num_lanes: int) -> None:
        self._bodies = np.zeros((num_lanes, 7))
        self.engines = [VoxelBackend(body) for body in self._bodies]

    def step(self, actions: NDArray[np.int64]) -> Pose:
        worlds = [engine.world for engine in self.engines]
        physics.step_lanes(_addresses(worlds), worlds[0].grid.shape, self._bodies, actions)
        return pose_of(self._bodies)

    def render(self, height: int, width: int, lanes: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        worlds = [engine.world for engine in self.engines]
        rows = np.arange(len(worlds)) if lanes is None else np.asarray(lanes, np.int64)
        frames = np.empty((len(rows), height, width, 3), np.uint8)
        render.draw_lanes(_addresses(worlds), worlds[0].grid.shape, atlas(), self._bodies, physics.EYES, rows, frames)
        return frames


def _addresses(worlds: Sequence[VoxelWorld]) -> NDArray[np.int64]:
    return np.concatenate([world.addresses for world in worlds])
