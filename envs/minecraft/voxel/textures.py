"""Procedural textures of the voxel world: 16 x 16 texels per face, with mip levels of 8, 4, 2 and 1 texels.

Contrast within a texture is low and coarse, so that a small autoencoder can reproduce it. Block types differ by colour and pattern. A mip
level is the average of the next finer one; the renderer chooses the level by the number of texels under a pixel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wmgym.envs.minecraft.voxel.blocks import FACES

SIZE = 16
LEVEL_START = (0, 256, 320, 336, 340)  # where each mip level begins in a face's 341 texels
SIDE, TOP, BOTTOM = 0, 1, 2


@lru_cache(maxsize=1)
def atlas() -> np.ndarray:
    """All textures, uint8 [block, face (side, top, bottom), 341 texels of 5 mip levels, rgb]; row 0 of a face is its top edge."""
    faces = np.zeros((len(FACES) + 1, 3, 341, 3), np.uint8)
    for block, kinds in enumerate(FACES.values(), start=1):
        for face, (pattern, *colours) in enumerate(kinds if len(kinds) == 3 else kinds * 3):
            rng = np.random.default_rng([block, min(face, len(kinds) - 1)])
            faces[block, face] = _levels(_paint(rng, pattern, *(np.array(c, np.float32) for c in colours)))
    return faces


def _levels(image: np.ndarray) -> np.ndarray:
    levels = [image]
    while len(image) > 1:
        image = image.reshape(len(image) // 2, 2, -1, 2, 3).mean((1, 3))
        levels.append(image)
    return np.concatenate([level.reshape(-1, 3) for level in levels]).clip(0, 255).round().astype(np.uint8)


def _mottle(rng: np.random.Generator, amount: float, cells: int = 4) -> np.ndarray:
    """Smooth seamless noise around 1: [16, 16, 1]."""
    coarse = rng.uniform(-1, 1, (cells, cells))
    at = np.arange(SIZE) * cells / SIZE
    low, part = at.astype(int), at % 1
    part = part * part * (3 - 2 * part)
    rows = coarse[low] * (1 - part[:, None]) + coarse[(low + 1) % cells] * part[:, None]
    both = rows[:, low] * (1 - part) + rows[:, (low + 1) % cells] * part
    fine = rng.uniform(-1, 1, (SIZE, SIZE))
    return (1 + amount * both + 0.35 * amount * fine)[..., None]


def _paint(rng: np.random.Generator, pattern: str, *colours: np.ndarray) -> np.ndarray:
    colour, second = colours[0], colours[-1]
    row, column = np.mgrid[0:SIZE, 0:SIZE]
    shade = np.ones((SIZE, SIZE))
    image = colour * _mottle(rng, 0.09)
    if pattern == "ripple":
        image = colour * (1 + 0.06 * np.sin((row + 3 * np.sin(column / 8 * np.pi)) / 4 * np.pi))[..., None]
    elif pattern == "fringe":  # soil with its cover hanging over the edge
        depth = rng.integers(3, 6, SIZE // 2).repeat(2)
        image = np.where((row < depth)[..., None], second * _mottle(rng, 0.07), image)
    elif pattern == "dots":
        for _ in range(9):
            y, x = rng.integers(0, SIZE, 2)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                image[(y + dy) % SIZE, (x + dx) % SIZE] = second * rng.uniform(0.9, 1.05)
    elif pattern == "cobble":
        centres = rng.uniform(0, SIZE, (9, 2))
        gap = np.stack([np.hypot((row - y + 8) % 16 - 8, (column - x + 8) % 16 - 8) for y, x in centres])
        near = np.sort(gap, 0)
        tone = rng.uniform(0.86, 1.1, 9)[gap.argmin(0)]
        shade = np.where(near[1] - near[0] < 1.1, 0.74, tone)
    elif pattern == "leaves":
        image = colour * _mottle(rng, 0.2, 8)
    elif pattern == "bark":
        image = colour * (1 + 0.16 * rng.uniform(-1, 1, SIZE // 2).repeat(2)[None, :, None] + 0.0 * row[..., None]) * _mottle(rng, 0.05)
    elif pattern == "birch":
        for _ in range(6):
            y, x, long = rng.integers(0, SIZE), rng.integers(0, SIZE), rng.integers(3, 7)
            shade[y, np.arange(x, x + long) % SIZE] = 0.35
    elif pattern == "rings":
        shade = 1 - 0.16 * ((np.maximum(abs(row - 7.5), abs(column - 7.5)).astype(int)) % 3 == 1)
    elif pattern == "stripes":
        shade = np.where(column % 4 == 0, 0.76, 1.0)
    elif pattern == "planks":
        board = row // 4
        joint = (column == (rng.integers(0, SIZE, 4)[board])) & (row % 4 < 3)
        shade = np.where((row % 4 == 3) | joint, 0.72, rng.uniform(0.94, 1.06, 4)[board])
    elif pattern == "bricks":
        course = row // 4
        along = column + 4 * (course % 2)
        shade = np.where((row % 4 == 3) | (along % 8 == 7), 0.72, rng.uniform(0.93, 1.07, (4, 2))[course, (along // 8) % 2])
    elif pattern == "layers":
        shade = np.where((row == 4) | (row == 11), 0.82, np.where(row < 4, 1.04, 0.97))
    elif pattern == "straw":
        shade = 1 + 0.14 * rng.uniform(-1, 1, SIZE // 2).repeat(2)[None, :] - 0.2 * ((row == 4) | (row == 11))
    elif pattern == "pane":
        frame = (row < 1) | (row > 14) | (column < 1) | (column > 14) | (row == 7) | (column == 7)
        image = np.where(frame[..., None], colour * 0.62, colour * (1.0 + 0.08 * ((row + column) % 16 < 4)[..., None]))
    elif pattern == "lamp":
        shade = 1.04 - 0.2 * (np.maximum(abs(row - 7.5), abs(column - 7.5)) > 6.5)
    elif pattern == "metal":
        edge = np.where((row == 15) | (column == 15), 0.76, 1 + 0.05 * np.sin((row + column) / 4))
        shade = np.where((row == 0) | (column == 0), 1.12, edge)
    elif pattern == "spots":
        for y, x, radius in ((4, 4, 3.2), (11, 11, 3.6), (12, 3, 1.8), (3, 12, 2.2)):
            image = np.where((np.hypot(row - y, column - x) < radius)[..., None], second, image)
    elif pattern == "books":
        spines = np.array([(150, 60, 50), (60, 90, 130), (80, 120, 60), (190, 160, 80)], np.float32)[rng.integers(0, 4, 8)].repeat(2, 0)
        shelf = (row % 8 == 7) | (row % 8 == 0)
        image = np.where(shelf[..., None], image, spines[None])
    else:
        assert pattern in ("mottle", "wool"), pattern
        if pattern == "wool":
            image = colour * _mottle(rng, 0.06, 8)
    return image * shade[..., None]
