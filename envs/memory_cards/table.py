"""The table of Memory Cards: sixteen cards, face up or face down, and a cursor. Rules and drawing, for many tables at once.

A `Table` is a value: `move` returns a new one. Cells are numbered row by row from the top left: 4 * row + column. Frames are composed
of tiles, which are drawn here by formula, once per size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wmgym.settings.memory_cards import ACTIONS

SIDE = 4  # cards in a row
CELLS = SIDE * SIDE
OBJECTS = 8
BLANK, BACK = OBJECTS, OBJECTS + 1  # tiles of a blank card and of a card face down
KINDS = OBJECTS + 2  # of tiles
TOGGLE = ACTIONS.index("toggle")
REST = len(ACTIONS)  # the action of a table whose episode is over: nothing changes
DECKS = ("pairs", "blanks")
COVERS = ("all", "none", "random")

_TABLE_TOP = (38, 44, 52)
_FACE = (240, 236, 224)
_CURSOR = (255, 196, 0)
_COLOURS = ((214, 48, 49), (9, 132, 70), (33, 97, 214), (232, 132, 12), (134, 60, 190), (0, 150, 160), (92, 60, 30), (222, 72, 150))
_FINE = 8  # samples along a side of a pixel, for smooth edges


@dataclass(frozen=True)
class Table:
    """N tables."""

    objects: NDArray[np.int64]  # [N, 16]: 0 to 7, or BLANK
    is_open: NDArray[np.bool_]  # [N, 16]: face up
    cursor: NDArray[np.int64]  # [N]: its cell


def deal(rng: np.random.Generator, deck: str, cover: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The objects of one table [16], and which of its cards are face up [16]."""
    cards = np.tile(np.arange(OBJECTS), 2) if deck == "pairs" else np.concatenate([np.arange(OBJECTS), np.full(OBJECTS, BLANK)])
    objects = rng.permutation(cards)
    is_open = rng.random(CELLS) < 0.5 if cover == "random" else np.full(CELLS, cover == "none")
    return objects, is_open


def _next_cells() -> NDArray[np.int64]:
    """The cell to which each action, and REST, moves the cursor from each cell: [6, 16]. The cursor stops at the edge."""
    rows, columns = np.divmod(np.arange(CELLS), SIDE)
    table = np.tile(np.arange(CELLS), (REST + 1, 1))
    for action, (down, right) in {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}.items():
        there = (rows + down).clip(0, SIDE - 1) * SIDE + (columns + right).clip(0, SIDE - 1)
        table[ACTIONS.index(action)] = there
    return table


_NEXT = _next_cells()


def move(table: Table, actions: NDArray[np.int64]) -> Table:
    """The tables after one action each, [N]; an action may be REST."""
    is_open = table.is_open
    turned = np.flatnonzero(actions == TOGGLE)
    if len(turned):
        is_open = is_open.copy()
        is_open[turned, table.cursor[turned]] ^= True
    return Table(table.objects, is_open, _NEXT[actions, table.cursor])


def poses(table: Table) -> NDArray[np.float32]:
    """The cursor's cell as a pose: x is the column from the left, y the row from the bottom, the rest is 0: [N, 5]."""
    out = np.zeros((len(table.cursor), 5), np.float32)
    out[:, 0] = table.cursor % SIDE
    out[:, 1] = SIDE - 1 - table.cursor // SIDE
    return out


def cell_of(pose: NDArray[np.float32]) -> int:
    """The cell at a pose. ValueError if there is none."""
    column, row = float(pose[0]), float(SIDE - 1 - pose[1])
    if not (column in range(SIDE) and row in range(SIDE)):
        raise ValueError(f"start must be a cell, x and y of 0, 1, 2 or 3, got {[float(v) for v in pose[:2]]}")
    return int(row) * SIDE + int(column)


# drawing


def draw(table: Table, size: int, show_cursor: bool = True) -> NDArray[np.uint8]:
    """Frames of the tables: uint8 [N, size, size, 3]. `size` is a multiple of 4."""
    lines, (count, side) = _lines(size), (len(table.cursor), size // SIDE)
    shown = np.where(table.is_open, table.objects, BACK)
    if show_cursor:
        shown[np.arange(count), table.cursor] += KINDS
    at = shown.reshape(count, SIDE, 1, SIDE) * side + np.arange(side)[:, None]  # index into `lines` of each tile's rows: [N, 4, side, 4]
    return lines.take(at).view(np.uint8).reshape(count, size, size, 3)


@lru_cache(maxsize=8)
def _lines(size: int) -> NDArray[np.void]:
    """The rows of pixels of all tiles, each row as one item: [2 * KINDS * side]."""
    side = size // SIDE
    return np.ascontiguousarray(tiles(side)).reshape(-1, side * 3).view(f"V{side * 3}").reshape(-1)


def tiles(side: int) -> NDArray[np.uint8]:
    """All tiles, first without and then with the cursor: uint8 [2 * KINDS, side, side, 3]. 0 to 7 objects, 8 blank, 9 the back."""
    edge = max(1, side // 12)
    margin = np.ones((side, side), bool)
    margin[edge:-edge, edge:-edge] = False
    across = (np.arange(side * _FINE) + 0.5) / (side * _FINE) * 2 - 1
    v, u = np.meshgrid(-across, across, indexing="ij")  # u to the right, v up, both from -1 to 1
    faces = [_blend(_smooth(shape, side), colour, _FACE) for shape, colour in zip(_shapes(u, v), _COLOURS, strict=True)]
    faces.append(np.full((side, side, 3), _FACE, np.float64))
    weave = _smooth(((u + v) % 0.5 < 0.25) ^ ((u - v) % 0.5 < 0.25), side)
    faces.append(_blend(weave, (70, 96, 150), (44, 62, 104)))
    plain = np.where(margin[..., None], _TABLE_TOP, np.stack(faces))
    chosen = np.where(margin[..., None], _CURSOR, np.stack(faces))
    return np.concatenate([plain, chosen]).round().astype(np.uint8)


def _shapes(u: NDArray[np.float64], v: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """The eight objects: disc, square, triangle, diamond, plus, ring, cross, bars."""
    a, b, r = abs(u), abs(v), np.hypot(u, v)
    return [
        r < 0.66,
        np.maximum(a, b) < 0.56,
        (a < 0.5 * (0.66 - v)) & (v > -0.6),
        a + b < 0.74,
        (np.minimum(a, b) < 0.22) & (np.maximum(a, b) < 0.68),
        (r > 0.36) & (r < 0.7),
        (abs(a - b) < 0.25) & (np.maximum(a, b) < 0.64),
        (a < 0.64) & (b < 0.62) & ((v + 0.62) % 0.5 < 0.24),
    ]


def _smooth(shape: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """The share of each pixel that a shape covers: [side, side]."""
    return shape.reshape(side, _FINE, side, _FINE).mean((1, 3))


def _blend(share: NDArray[np.float64], colour: tuple[int, ...], ground: tuple[int, ...]) -> NDArray[np.float64]:
    return share[..., None] * np.array(colour) + (1 - share[..., None]) * np.array(ground)
