"""Houses, landmarks and trees of the voxel world.

Each builder writes blocks into `grid` around a site with level ground, whose lowest free cell is `z`. Shapes, sizes and colours are drawn
from the world's generator, so that two of them in one world rarely look alike. Air is 0 at this stage.

Longer than 400 lines: a list of builders that do not depend on one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmgym.envs.minecraft.voxel.blocks import NUMBER as B


@dataclass(frozen=True)
class Site:
    """A place for a building."""

    x: int  # its middle
    y: int
    reach: int  # blocks of level ground to each side of the middle
    kind: str  # "house", or a name in LANDMARKS
    face: tuple[float, float]  # direction of the front
    village: tuple[int, int] | None  # the village's cell


COLOURS = ("red", "orange", "yellow", "lime", "cyan", "blue", "purple", "magenta", "white", "black")
STONES = ("cobble", "mossy_cobble", "stone_bricks", "dark_bricks", "red_bricks", "sandstone", "plaster", "stone")
WALLS = (
    *("oak_planks", "birch_planks", "dark_planks", "red_planks", "cobble", "stone_bricks", "red_bricks", "sandstone"),
    *("plaster", "plaster", "clay_white", "yellow", "cyan", "orange"),
)
ROOFS = (
    *("dark_planks", "red_planks", "blue_tiles", "green_tiles", "thatch", "red_bricks", "dark_bricks", "purple", "copper"),
    "birch_planks",
)
POSTS = ("oak_log", "spruce_log", "birch_log", "dark_bricks", "stone_bricks", "acacia_log")
METALS = ("gold", "copper", "lamp", "iron")


def build(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int, biome: int, sea: int) -> None:
    """Build the house or landmark of `site`."""
    builder = _house if site.kind == "house" else LANDMARKS[site.kind][0]
    builder(grid, rng, site, z)


def _pick(rng: np.random.Generator, names: tuple[str, ...], but: int = 0) -> int:
    """The number of a random block among `names`, other than `but`."""
    while True:
        block = B[names[rng.integers(len(names))]]
        if block != but:
            return block


def _disc(grid: np.ndarray, x: int, y: int, z: int, radius: float, block: int, hollow: float = -1.0) -> None:
    reach = int(radius) + 1
    side = np.arange(-reach, reach + 1)
    away = np.hypot(side[:, None], side[None])
    view = grid[x - reach : x + reach + 1, y - reach : y + reach + 1, z]
    view[(away <= radius) & (away > hollow)] = block


# houses


def _house(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    wide, deep, tall = int(rng.integers(5, 10)), int(rng.integers(5, 9)), int(rng.integers(3, 5))
    wall = _pick(rng, WALLS)
    roof = _pick(rng, ROOFS, wall)
    post = _pick(rng, POSTS, wall)
    floor = _pick(rng, ("oak_planks", "birch_planks", "dark_planks", "cobble"))
    x, y = site.x - wide // 2, site.y - deep // 2
    house = grid[x : x + wide, y : y + deep]
    house[:, :, z : z + tall + 8] = 0
    house[:, :, z - 4 : z - 1] = np.where(house[:, :, z - 4 : z - 1] == 0, B["cobble"], house[:, :, z - 4 : z - 1])
    house[:, :, z - 1] = floor
    if rng.random() < 0.3 and tall == 3:
        tall = 6  # a second storey
    for walls in (house[0], house[-1], house[:, 0], house[:, -1]):
        walls[:, z : z + tall] = wall
        if rng.random() < 0.5:
            walls[:, z] = _pick(rng, ("cobble", "stone_bricks", "dark_bricks")) if wall not in (B["cobble"],) else wall
    for i in (0, -1):
        for j in (0, -1):
            house[i, j, z : z + tall] = post
    # windows along each wall
    for low in (z + 1, z + 4):
        if low + 1 >= z + tall:
            continue
        for i in range(2, wide - 2, 2):
            house[i, 0, low] = house[i, -1, low] = B["glass"]
        for j in range(2, deep - 2, 2):
            house[0, j, low] = house[-1, j, low] = B["glass"]
    if tall == 6:
        house[1:-1, 1:-1, z + 3] = 0
        for walls in (house[0], house[-1], house[:, 0], house[:, -1]):
            walls[:, z + 3] = post
    # the door faces the village's centre, with one block of path in front
    fx, fy = site.face
    if abs(fx) > abs(fy):
        j, i = deep // 2, 0 if fx < 0 else wide - 1
        house[i, j, z : z + 2] = 0
        ahead = (x + i + (1 if fx > 0 else -1), y + j)
    else:
        i, j = wide // 2, 0 if fy < 0 else deep - 1
        house[i, j, z : z + 2] = 0
        ahead = (x + i, y + j + (1 if fy > 0 else -1))
    grid[ahead[0], ahead[1], z : z + 3] = 0
    grid[ahead[0], ahead[1], z - 1] = B["gravel"]
    # furniture, and a lamp under the roof
    house[1, 1, z : z + 2] = _pick(rng, ("books", "thatch", "pumpkin", *COLOURS))
    house[-2, -2, z] = _pick(rng, COLOURS)
    house[wide // 2, deep // 2, z + tall - 1] = B["lamp"]
    _roof(grid, rng, x, y, wide, deep, z + tall, roof, wall)
    if rng.random() < 0.4:  # chimney
        grid[x + wide - 2, y + 1, z + tall : z + tall + 6] = B["red_bricks"] if roof != B["red_bricks"] else B["cobble"]


def _roof(grid: np.ndarray, rng: np.random.Generator, x: int, y: int, wide: int, deep: int, z: int, roof: int, wall: int) -> None:
    shape = rng.integers(4)
    if shape == 0:  # flat with a rim
        grid[x : x + wide, y : y + deep, z] = roof
        grid[x : x + wide, y : y + deep, z + 1] = roof
        grid[x + 1 : x + wide - 1, y + 1 : y + deep - 1, z + 1] = 0
    elif shape == 1:  # hipped
        for k in range((min(wide, deep) + 3) // 2):
            grid[x - 1 + k : x + wide + 1 - k, y - 1 + k : y + deep + 1 - k, z + k] = roof
    else:  # gabled along the longer side
        if wide >= deep:
            for k in range((deep + 3) // 2):
                grid[x : x + wide, y - 1 + k : y + deep + 1 - k, z + k] = wall
                grid[x - 1 : x + wide + 1, y - 1 + k, z + k] = roof
                grid[x - 1 : x + wide + 1, y + deep - k, z + k] = roof
        else:
            for k in range((wide + 3) // 2):
                grid[x - 1 + k : x + wide + 1 - k, y : y + deep, z + k] = wall
                grid[x - 1 + k, y - 1 : y + deep + 1, z + k] = roof
                grid[x + wide - k, y - 1 : y + deep + 1, z + k] = roof


# landmarks


def _tower(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    first = _pick(rng, STONES + COLOURS[:8])
    second = _pick(rng, STONES + COLOURS, first)
    tall, radius, band = int(rng.integers(11, 18)), rng.choice([2.3, 3.0]), int(rng.integers(1, 5))
    square = rng.random() < 0.5
    r = int(radius)
    for k in range(tall):
        block = second if (k // band) % 2 else first
        if square:
            grid[site.x - r : site.x + r + 1, site.y - r : site.y + r + 1, z + k] = block
        else:
            _disc(grid, site.x, site.y, z + k, radius, block)
    top = z + tall
    cap = _pick(rng, ROOFS)
    if rng.random() < 0.5:  # battlements
        _disc(grid, site.x, site.y, top, radius + 1, first)
        for dx in range(-r - 1, r + 2, 2):
            for dy in range(-r - 1, r + 2, 2):
                if max(abs(dx), abs(dy)) == r + 1:
                    grid[site.x + dx, site.y + dy, top + 1] = first
    else:  # pointed roof
        for k in range(r + 3):
            _disc(grid, site.x, site.y, top + k, radius + 1.2 - k * 0.9, cap)
    grid[site.x - r : site.x + r + 1, site.y, z + tall - 3] = B["lamp"]
    grid[site.x, site.y - r : site.y + r + 1, z + tall - 3] = B["lamp"]
    # a niche to stand in
    grid[site.x - 1 : site.x + 2, site.y, z : z + 3] = 0
    grid[site.x - r - 1 : site.x + r + 2, site.y, z : z + 2] = 0


def _obelisk(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    body, tip = _pick(rng, STONES + ("black", "white", "purple", "cyan")), _pick(rng, METALS)
    tall = int(rng.integers(9, 16))
    grid[site.x - 2 : site.x + 3, site.y - 2 : site.y + 3, z] = body
    grid[site.x - 1 : site.x + 2, site.y - 1 : site.y + 2, z + 1 : z + tall // 2] = body
    grid[site.x - 1 : site.x + 2, site.y, z : z + tall - 3] = body
    grid[site.x, site.y - 1 : site.y + 2, z : z + tall - 3] = body
    grid[site.x, site.y, z : z + tall] = body
    grid[site.x, site.y, z + tall - 1 : z + tall + 1] = tip


def _well(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    stone, roof = _pick(rng, STONES), _pick(rng, ROOFS)
    post = _pick(rng, POSTS)
    x, y = site.x, site.y
    grid[x - 2 : x + 3, y - 2 : y + 3, z] = stone
    grid[x - 1 : x + 2, y - 1 : y + 2, z] = B["water"]
    for i in (-2, 2):
        for j in (-2, 2):
            grid[x + i, y + j, z : z + 4] = post
    for k in range(3):
        grid[x - 2 + k : x + 3 - k, y - 2 + k : y + 3 - k, z + 4 + k] = roof


def _pillars(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    colours = rng.permutation(COLOURS)
    for n in range(int(rng.integers(3, 6))):
        x, y = site.x + (0, 4, -4, 1, -1)[n], site.y + (0, 2, 1, -4, 4)[n]
        tall = int(rng.integers(4, 12))
        grid[x : x + 2, y : y + 2, z : z + tall] = B[colours[n]]
        grid[x : x + 2, y : y + 2, z + tall] = B["white"]


def _mushroom(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    cap = _pick(rng, ("mushroom_red", "mushroom_brown", "mushroom_purple"))
    tall, wide = int(rng.integers(6, 11)), rng.uniform(3.2, 5.2)
    grid[site.x : site.x + 2, site.y : site.y + 2, z : z + tall] = B["mushroom_stem"]
    if rng.random() < 0.5:  # bell
        for k in range(4):
            _disc(grid, site.x, site.y, z + tall - 2 + k, wide - 0.25 * k * k, cap, hollow=(wide - 1.2 if k < 2 else -1))
        _disc(grid, site.x, site.y, z + tall + 2, wide - 2.4, cap)
    else:  # table
        _disc(grid, site.x, site.y, z + tall, wide, cap)
        _disc(grid, site.x, site.y, z + tall + 1, wide - 1.6, cap)


def _arch(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    coloured = rng.random() < 0.5
    blocks = [B[c] for c in ("red", "orange", "yellow", "lime", "blue", "purple")] if coloured else [_pick(rng, STONES)] * 2
    along_x = rng.random() < 0.5
    inner = 4.0
    for du in range(-10, 11):
        for dz in range(11):
            away = np.hypot(du, dz)
            ring = int((inner + len(blocks) - away) if coloured else (away - inner) / 1.2)
            if inner <= away < inner + (len(blocks) if coloured else 2.4) and 0 <= ring < len(blocks) + 1:
                block = blocks[min(ring, len(blocks) - 1)]
                if along_x:
                    grid[site.x + du, site.y : site.y + 2, z + dz] = block
                else:
                    grid[site.x : site.x + 2, site.y + du, z + dz] = block


def _ruin(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    wall = _pick(rng, ("mossy_cobble", "stone_bricks", "sandstone", "red_bricks", "dark_bricks"))
    half = int(rng.integers(3, 6))
    for dx in range(-half, half + 1):
        for dy in range(-half, half + 1):
            if max(abs(dx), abs(dy)) == half and rng.random() < 0.75:
                grid[site.x + dx, site.y + dy, z : z + int(rng.integers(1, 6))] = wall
    for dx in (-half, half):
        grid[site.x + dx, site.y + half, z : z + 6] = wall
    grid[site.x, site.y - half : site.y + half + 1, z : z + 3] = 0  # two ways in
    grid[site.x, site.y, z] = B["gold"] if rng.random() < 0.5 else B["pumpkin"]


def _pyramid(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    block = _pick(rng, ("sandstone", "red_bricks", "stone_bricks", "clay_white", "dark_bricks", "green_tiles", "blue_tiles"))
    tip = _pick(rng, METALS)
    half = int(rng.integers(4, 7))
    for k in range(half):
        r = half - k
        grid[site.x - r : site.x + r + 1, site.y - r : site.y + r + 1, z + k] = block
    grid[site.x, site.y, z + half : z + half + 2] = tip


def _totem(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    colours = rng.permutation(COLOURS)
    at = z
    for n in range(int(rng.integers(4, 7))):
        tall = int(rng.integers(1, 4))
        r = int(rng.integers(0, 2)) + (n % 2 == 0)
        grid[site.x - r : site.x + r + 1, site.y - r : site.y + r + 1, at : at + tall] = B[colours[n]]
        at += tall
    grid[site.x, site.y, at : at + 2] = _pick(rng, METALS)


def _great_tree(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    leaves = _pick(rng, ("blossom", "autumn_leaves", "birch_leaves", "spruce_leaves", "oak_leaves"))
    log = _pick(rng, ("oak_log", "spruce_log", "birch_log"))
    tall = int(rng.integers(9, 14))
    grid[site.x : site.x + 2, site.y : site.y + 2, z : z + tall] = log
    for _ in range(6):
        dx, dy, dz = rng.integers(-3, 4), rng.integers(-3, 4), rng.integers(-2, 3)
        _ball(grid, site.x + int(dx), site.y + int(dy), z + tall + int(dz), rng.uniform(2.2, 3.4), leaves)


def _circle(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    stone = _pick(rng, ("stone", "mossy_cobble", "dark_bricks", "sandstone", "plaster"))
    count, tall = int(rng.integers(6, 9)), int(rng.integers(3, 6))
    for n in range(count):
        a = 2 * np.pi * n / count
        x, y = site.x + round(5 * np.cos(a)), site.y + round(5 * np.sin(a))
        grid[x, y, z : z + tall] = stone
        grid[x - (x > site.x), y, z + tall] = stone
        grid[x, y, z + tall] = stone
    grid[site.x, site.y, z : z + 2] = _pick(rng, METALS)


def _mill(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    wall, roof, sail = _pick(rng, WALLS), _pick(rng, ROOFS), _pick(rng, ("white", "red", "yellow", "cyan"))
    for k in range(9):
        r = 3 if k < 3 else 2
        grid[site.x - r : site.x + r + 1, site.y - r : site.y + r + 1, z + k] = wall
    for k in range(4):
        grid[site.x - 3 + k : site.x + 4 - k, site.y - 3 + k : site.y + 4 - k, z + 9 + k] = roof
    x = site.x + (3 if rng.random() < 0.5 else -3)
    for n in range(-5, 6):
        if n:
            a, b = (n, n) if rng.random() < 2 else (n, 0)
            grid[x, site.y + a, z + 8 + b if z + 8 + b > z + 2 else z + 3] = sail
            grid[x, site.y + a, z + 8 - b if z + 8 - b > z + 2 else z + 3] = sail
    grid[x, site.y, z + 8] = B["dark_planks"]


def _lighthouse(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    first, second = B["white"], _pick(rng, ("red", "blue", "black", "lime", "orange"))
    tall = int(rng.integers(12, 19))
    for k in range(tall):
        _disc(grid, site.x, site.y, z + k, 2.9 if k < 4 else 2.3 if k < 9 else 1.6, second if (k // 3) % 2 else first)
    _disc(grid, site.x, site.y, z + tall, 2.3, B["dark_planks"])
    _disc(grid, site.x, site.y, z + tall + 1, 1.2, B["lamp"])
    _disc(grid, site.x, site.y, z + tall + 2, 1.2, B["lamp"])
    _disc(grid, site.x, site.y, z + tall + 3, 1.7, second)
    grid[site.x, site.y, z + tall + 4] = second


def _cube(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    shell, core = _pick(rng, COLOURS), _pick(rng, METALS)
    for dx in (-2, 2):
        for dy in (-2, 2):
            grid[site.x + dx, site.y + dy, z : z + 5] = B["dark_bricks"]
    cube = grid[site.x - 2 : site.x + 3, site.y - 2 : site.y + 3, z + 4 : z + 9]
    cube[:] = shell
    cube[1:4, 1:4, :] = core
    cube[1:4, :, 1:4] = core
    cube[:, 1:4, 1:4] = core


def _gate(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    post, beam = _pick(rng, ("red", "purple", "cyan", "lime", "orange")), _pick(rng, ("black", "white", "dark_planks", "gold"))
    along_x = rng.random() < 0.5

    def put(du: int, dv: int, low: int, high: int, block: int) -> None:
        x, y = (site.x + du, site.y + dv) if along_x else (site.x + dv, site.y + du)
        grid[x, y, z + low : z + high] = block

    for side in (-3, 3):
        put(side, 0, 0, 8, post)
        put(side, 1, 0, 8, post)
    for du in range(-5, 6):
        for dv in (0, 1):
            put(du, dv, 8, 9, beam)
            put(du, dv, 7 if abs(du) < 5 else 9, 8 if abs(du) < 5 else 10, post if abs(du) < 5 else beam)
            if abs(du) < 4:
                put(du, dv, 5, 6, post)


def _giant(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    skin, shirt = _pick(rng, ("stone_bricks", "iron", "gold", "copper", "plaster")), _pick(rng, COLOURS)
    x, y = site.x, site.y
    grid[x - 1 : x + 1, y - 3 : y - 1, z : z + 5] = skin
    grid[x - 1 : x + 1, y + 1 : y + 3, z : z + 5] = skin
    grid[x - 1 : x + 1, y - 3 : y + 3, z + 5 : z + 10] = shirt
    grid[x - 1 : x + 1, y - 5 : y - 3, z + 8 : z + 10] = shirt
    grid[x - 1 : x + 1, y + 3 : y + 5, z + 8 : z + 10] = shirt
    lifted = rng.random() < 0.5
    grid[x - 1 : x + 1, y - 5 : y - 3, z + 4 : z + 8] = skin
    grid[x - 1 : x + 1, y + 3 : y + 5, z + 10 if lifted else z + 4 : z + 15 if lifted else z + 8] = skin
    grid[x - 1 : x + 1, y - 2 : y + 2, z + 10 : z + 14] = skin
    grid[x - 1 : x + 1, y - 2, z + 12] = grid[x - 1 : x + 1, y + 1, z + 12] = B["black"]


def _garden(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    crops = _pick(rng, ("pumpkin", "thatch", "flowers_red", "flowers_yellow"))
    rim = _pick(rng, ("oak_log", "cobble", "white", "birch_log"))
    for dx in range(-4, 5):
        for dy in range(-4, 5):
            edge = max(abs(dx), abs(dy)) == 4
            if edge and (dx + dy) % 2 == 0:
                grid[site.x + dx, site.y + dy, z] = rim
            elif not edge:
                grid[site.x + dx, site.y + dy, z - 1] = crops if dy % 2 else B["dirt"]
    # a scarecrow
    grid[site.x, site.y, z : z + 4] = B["oak_log"]
    grid[site.x, site.y - 1 : site.y + 2, z + 2] = _pick(rng, COLOURS)
    grid[site.x, site.y, z + 3] = B["pumpkin"]


def _monolith(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    body, stripe = _pick(rng, ("black", "white", "purple", "blue", "magenta", "cyan")), _pick(rng, METALS + ("red", "yellow"))
    tall, lean = int(rng.integers(8, 15)), rng.random() < 0.5
    for k in range(tall):
        shift = k // 4 if lean else 0
        grid[site.x + shift : site.x + shift + 2, site.y - 2 : site.y + 3, z + k] = stripe if k % 5 == 3 else body


def _fountain(grid: np.ndarray, rng: np.random.Generator, site: Site, z: int) -> None:
    stone = _pick(rng, ("white", "plaster", "stone_bricks", "sandstone", "cyan"))
    _disc(grid, site.x, site.y, z, 4.3, stone)
    _disc(grid, site.x, site.y, z, 3.3, B["water"])
    grid[site.x, site.y, z : z + 5] = stone
    _disc(grid, site.x, site.y, z + 3, 2.2, stone)
    grid[site.x, site.y, z + 5] = _pick(rng, METALS)


# name -> builder, and the reach of its site
LANDMARKS: dict[str, tuple[Callable[[np.ndarray, np.random.Generator, Site, int], None], int]] = {
    "tower": (_tower, 4),
    "obelisk": (_obelisk, 2),
    "well": (_well, 3),
    "pillars": (_pillars, 5),
    "mushroom": (_mushroom, 3),
    "arch": (_arch, 8),
    "ruin": (_ruin, 5),
    "pyramid": (_pyramid, 7),
    "totem": (_totem, 2),
    "great_tree": (_great_tree, 3),
    "circle": (_circle, 6),
    "mill": (_mill, 4),
    "lighthouse": (_lighthouse, 3),
    "cube": (_cube, 3),
    "gate": (_gate, 5),
    "giant": (_giant, 5),
    "garden": (_garden, 5),
    "monolith": (_monolith, 4),
    "fountain": (_fountain, 5),
}


# trees


def _ball(grid: np.ndarray, x: int, y: int, z: int, radius: float, leaves: int, flat: float = 1.0) -> None:
    """A round crown of leaves; other blocks are kept."""
    r = int(radius) + 1
    side = np.arange(-r, r + 1)
    away = side[:, None, None] ** 2 + side[None, :, None] ** 2 + (side[None, None] * flat) ** 2
    view = grid[x - r : x + r + 1, y - r : y + r + 1, z - r : z + r + 1]
    if view.shape == away.shape:
        view[(away <= radius * radius) & (view == 0)] = leaves


def tree(grid: np.ndarray, rng: np.random.Generator, x: int, y: int, z: int, biome: int, wood: int) -> None:
    """A tree (or cactus) of `biome` (world.PLAINS, ...) that stands in the free cell (x, y, z)."""
    in_forest = ("oak", "birch", "autumn")[rng.integers(3) if rng.random() < 0.45 else wood]  # also drawn outside forests
    kind = (("oak", "birch", "blossom")[wood], in_forest, "cactus", "spruce", "acacia", "dead")[biome]
    tall = int(rng.integers(4, 7))
    if kind == "cactus":
        grid[x, y, z : z + int(rng.integers(2, 5))] = B["cactus"]
    elif kind == "dead":
        grid[x, y, z : z + tall] = B["acacia_log"]
        grid[x + int(rng.integers(-1, 2)), y, z + tall - 2] = B["acacia_log"]
    elif kind == "spruce":
        tall += 3
        for k in range(tall - 1):
            radius = (0.6, 1.2, 2.3)[k % 2 + (k > 3)] if k else 0.3
            view = z + tall - k
            if view > z + 2:
                _crown(grid, x, y, view, radius, B["spruce_leaves"])
        grid[x, y, z : z + tall] = B["spruce_log"]
        grid[x, y, z + tall] = B["spruce_leaves"]
    elif kind == "acacia":
        lean = int(rng.integers(-1, 2))
        grid[x, y, z : z + tall - 2] = B["acacia_log"]
        grid[x + lean, y, z + tall - 2 : z + tall] = B["acacia_log"]
        _crown(grid, x + lean, y, z + tall, 3.2, B["acacia_leaves"])
        _crown(grid, x + lean, y, z + tall + 1, 1.6, B["acacia_leaves"])
    else:
        log, leaves = {
            "oak": ("oak_log", "oak_leaves"),
            "birch": ("birch_log", "birch_leaves"),
            "blossom": ("spruce_log", "blossom"),
            "autumn": ("oak_log", "autumn_leaves"),
        }[kind]
        tall += 1
        _ball(grid, x, y, z + tall, rng.uniform(2.0, 2.7), B[leaves])
        grid[x, y, z : z + tall] = B[log]


def _crown(grid: np.ndarray, x: int, y: int, z: int, radius: float, leaves: int) -> None:
    r = int(radius) + 1
    side = np.arange(-r, r + 1)
    view = grid[x - r : x + r + 1, y - r : y + r + 1, z]
    view[(np.hypot(side[:, None], side[None]) <= radius) & (view == 0)] = leaves
