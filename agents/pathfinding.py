"""Shortest paths for a walker in a block world: A* and flood fill.

A *cell* (x, y, z) is a place to stand: block (x, y, z - 1) is solid, blocks (x, y, z) and (x, y, z + 1) are free, and z is the height of
the feet. A move leads to one of the 4 neighbouring columns at the same height, one block up (a jump, which needs a third free block
overhead) or up to three blocks down, or to a diagonal neighbour at the same height if both columns beside it are cells too. Water is not
solid, so paths cross lakes along the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmgym.jit import njit

MAX_DROP = 3
CLIMB_COST = 0.5  # extra cost of a jump, in blocks walked
DROP_COST = 0.25  # extra cost per block of a drop

Cell = tuple[int, int, int]
Solid = Callable[[tuple[int, int, int], tuple[int, int, int]], np.ndarray]  # (low, high) -> bool [X, Y, Z]; high excluded


@dataclass(frozen=True)
class Region:
    """The solid blocks in a box of the world, read once. Searches stay inside the box."""

    solid: np.ndarray  # bool [X, Y, Z]
    low: Cell  # lowest corner of the box

    @staticmethod
    def around(solid: Solid, center: Cell, reach: int, height: int = 24) -> Region:
        """The box that extends `reach` blocks to each side of `center` and `height` blocks up and down."""
        low = (center[0] - reach, center[1] - reach, center[2] - height)
        high = (center[0] + reach + 1, center[1] + reach + 1, center[2] + height + 1)
        return Region(np.ascontiguousarray(solid(low, high)), low)

    def is_solid(self, cell: Cell) -> bool:
        """Whether a block stops a body. Blocks outside the box do."""
        i = self._index(cell)
        if not all(0 <= n < size for n, size in zip(i, self.solid.shape)):
            return True
        return bool(self.solid[i])

    def can_stand(self, cell: Cell) -> bool:
        """Whether a walker can stand at these coordinates."""
        x, y, z = cell
        return self.is_solid((x, y, z - 1)) and not self.is_solid((x, y, z)) and not self.is_solid((x, y, z + 1))

    def cell_of(self, pose: np.ndarray) -> Cell | None:
        """The cell that supports a body at a pose (under its middle or its edge), else the cell onto which it would fall, else None."""
        px, py, z = float(pose[0]), float(pose[1]), math.floor(float(pose[2]) + 0.01)
        for dx, dy in ((0.0, 0.0), (0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3), (0.3, 0.3), (0.3, -0.3), (-0.3, 0.3), (-0.3, -0.3)):
            cell = (math.floor(px + dx), math.floor(py + dy), z)
            if self.can_stand(cell):
                return cell
        for drop in range(1, 8):
            cell = (math.floor(px), math.floor(py), z - drop)
            if self.can_stand(cell):
                return cell
        return None

    def path(self, start: Cell, goal: Cell) -> list[Cell] | None:
        """The cheapest path from start to goal, both included; None if there is none inside the box."""
        if not (self.can_stand(start) and self.can_stand(goal)):
            return None
        cost, parent = _search(self.solid, self._flat(start), self._flat(goal), np.inf)
        return self._trace(cost, parent, goal)

    def flood(self, start: Cell, reach: float = np.inf) -> Reachable:
        """All cells that can be reached at a cost of at most `reach`. ValueError if `start` is not a cell."""
        if not self.can_stand(start):
            raise ValueError(f"start must be a cell to stand on, got {start}")
        return Reachable(self, *_search(self.solid, self._flat(start), -1, reach))

    def _index(self, cell: Cell) -> Cell:
        return (cell[0] - self.low[0], cell[1] - self.low[1], cell[2] - self.low[2])

    def _flat(self, cell: Cell) -> int:
        return int(np.ravel_multi_index(self._index(cell), self.solid.shape))

    def _trace(self, cost: np.ndarray, parent: np.ndarray, goal: Cell) -> list[Cell] | None:
        node = self._flat(goal)
        if not np.isfinite(cost[node]):
            return None
        nodes = [node]
        while parent[nodes[-1]] >= 0:
            nodes.append(int(parent[nodes[-1]]))
        at = np.stack(np.unravel_index(nodes[::-1], self.solid.shape), -1) + np.array(self.low)
        return [(int(x), int(y), int(z)) for x, y, z in at]


@dataclass(frozen=True)
class Reachable:
    """The cells that can be reached from a start, with their costs."""

    region: Region
    cost: np.ndarray  # float32 [X * Y * Z], inf where not reached
    parent: np.ndarray  # int32 [X * Y * Z]: flat index of the previous cell, -1 at the start and where not reached

    def cells(self) -> np.ndarray:
        """The reached cells, int64 [N, 3], sorted by flat index."""
        index = np.nonzero(np.isfinite(self.cost))[0]
        return np.stack(np.unravel_index(index, self.region.solid.shape), -1) + np.array(self.region.low)

    def path(self, goal: Cell) -> list[Cell] | None:
        """The cheapest path from the start to a cell; None if it was not reached."""
        return self.region._trace(self.cost, self.parent, goal)


@njit(cache=True)
def _search(solid, start, goal, reach):
    """A* from one flat index to another, or with `goal` -1 Dijkstra's search within `reach`: costs and parents, flat."""
    X, Y, Z = solid.shape
    cost = np.full(X * Y * Z, np.inf, np.float32)
    parent = np.full(X * Y * Z, -1, np.int32)
    closed = np.zeros(X * Y * Z, np.bool_)
    gx, gy = goal // (Y * Z), goal // Z % Y
    capacity = 1024
    keys, nodes = np.empty(capacity, np.float32), np.empty(capacity, np.int32)  # a binary heap, smallest key first
    size = 1
    keys[0], nodes[0] = 0.0, start
    cost[start] = 0.0
    while size:
        node = nodes[0]
        size -= 1
        last_key, last_node, hole = keys[size], nodes[size], 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and keys[child + 1] < keys[child]:
                child += 1
            if keys[child] >= last_key:
                break
            keys[hole], nodes[hole], hole = keys[child], nodes[child], child
        keys[hole], nodes[hole] = last_key, last_node
        if closed[node]:
            continue
        closed[node] = True
        if node == goal:
            break
        x, y, z = node // (Y * Z), node // Z % Y, node % Z
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                nx, ny = x + dx, y + dy
                if (dx == 0 and dy == 0) or nx < 0 or ny < 0 or nx >= X or ny >= Y:
                    continue
                nz, price = z, np.float32(1.0)
                if dx != 0 and dy != 0:
                    price = np.float32(1.41421356)
                    if not (_stand(solid, nx, ny, z) and _stand(solid, nx, y, z) and _stand(solid, x, ny, z)):
                        continue
                elif solid[nx, ny, z]:
                    nz = z + 1
                    price += np.float32(CLIMB_COST)
                    if not _stand(solid, nx, ny, nz) or z + 2 >= Z or solid[x, y, z + 2]:
                        continue
                else:
                    if solid[nx, ny, z + 1]:
                        continue
                    while nz > z - MAX_DROP and nz > 0 and not solid[nx, ny, nz - 1]:
                        nz -= 1
                    price += np.float32(DROP_COST) * (z - nz)
                    if not _stand(solid, nx, ny, nz):
                        continue
                there = (nx * Y + ny) * Z + nz
                total = cost[node] + price
                if closed[there] or total >= cost[there] or total > reach:
                    continue
                cost[there], parent[there] = total, node
                key = total
                if goal >= 0:
                    a, b = abs(nx - gx), abs(ny - gy)
                    key += np.float32(max(a, b) + 0.41421356 * min(a, b))
                if size == capacity:
                    capacity *= 2
                    more_keys, more_nodes = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
                    more_keys[:size], more_nodes[:size] = keys, nodes
                    keys, nodes = more_keys, more_nodes
                hole = size
                size += 1
                while hole > 0 and keys[(hole - 1) // 2] > key:
                    keys[hole], nodes[hole] = keys[(hole - 1) // 2], nodes[(hole - 1) // 2]
                    hole = (hole - 1) // 2
                keys[hole], nodes[hole] = key, there
    return cost, parent


@njit(cache=True, inline="always")
def _stand(solid, x, y, z):
    return 0 < z < solid.shape[2] - 1 and solid[x, y, z - 1] and not solid[x, y, z] and not solid[x, y, z + 1]
