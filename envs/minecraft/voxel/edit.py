"""Worlds with some blocks changed, as values: the world of the seed stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from wmgym.envs.minecraft.voxel.blocks import AIR, NUMBER
from wmgym.envs.minecraft.voxel.render import SUN
from wmgym.envs.minecraft.voxel.world import FAR, VoxelWorld, bake_light, distance

Cell = tuple[int, int, int]
REACH = 26  # blocks: a block's shadow ends within this distance, and so do the distances to it (`FAR`)


def numbered(world: VoxelWorld, blocks: Mapping[Cell, str]) -> dict[Cell, int]:
    """Cells with the numbers of their blocks, 0 for air. ValueError if a cell lies outside the world or a name is unknown."""
    known = {"air": 0, **NUMBER}
    for cell, name in blocks.items():
        if len(cell) != 3 or not all(0 <= int(c) < size for c, size in zip(cell, world.grid.shape, strict=True)):
            raise ValueError(f"a block must lie within the world, (0, 0, 0) to {world.grid.shape}, got {cell}")
        if name not in known:
            raise ValueError(f"unknown block {name!r}; known: {', '.join(known)}")
    return {(int(x), int(y), int(z)): known[name] for (x, y, z), name in blocks.items()}


def edited(world: VoxelWorld, cells: Mapping[Cell, int]) -> VoxelWorld:
    """The world with other blocks in some cells (0: air). Distances and light are computed again around them; starts stay as they are."""
    if not cells:
        return world
    places = np.array(list(cells))
    low = np.maximum(places[:, :2].min(0) - 2 * REACH, 0)  # cells within REACH change, and what they are computed from lies within REACH
    high = np.minimum(places[:, :2].max(0) + 2 * REACH + 1, world.grid.shape[:2])
    box = np.s_[low[0] : high[0], low[1] : high[1]]
    part = np.ascontiguousarray(world.grid[box])
    part[part >= AIR] = 0
    part[tuple((places - [*low, 0]).T)] = list(cells.values())
    near, above = part.copy(), part.copy()
    distance(near, FAR, True)
    distance(above, FAR, False)
    light = np.empty_like(near)
    bake_light(near, light, SUN)
    first, last = np.maximum(places[:, :2].min(0) - REACH, 0), np.minimum(places[:, :2].max(0) + REACH + 1, world.grid.shape[:2])
    inner = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
    fresh = {}
    for name, values in (("grid", near), ("above", above), ("light", light)):
        whole = getattr(world, name).copy()
        whole[first[0] : last[0], first[1] : last[1]] = values[inner]
        whole.setflags(write=False)
        fresh[name] = whole
    return replace(world, **fresh)
