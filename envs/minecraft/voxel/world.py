"""The voxel world of one seed: hills, water, biomes, trees, villages and landmarks.

    ground heights -> level sites for houses and landmarks -> roads -> columns of blocks -> tunnels -> buildings -> trees -> border
    -> distance of each air cell to the nearest block, and its light -> start positions

Blocks are uint8 [x, y, z], z up (see blocks.py). Steps in the ground are mostly one block high, so that a walker that can jump reaches
almost every place. The border is a cliff that cannot be climbed. Everything outside the world counts as solid.

Longer than 400 lines: the stages of one pipeline, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wmgym.envs.minecraft.voxel import structures
from wmgym.envs.minecraft.voxel.blocks import AIR, NUMBER, WATER
from wmgym.envs.minecraft.voxel.render import SUN
from wmgym.jit import njit

WIDTH, DEPTH = 256, 64
SEA = 18  # height of the water's surface
CELL = 20  # blocks along a side of a cell; each cell has at most one site
BORDER = 5  # width of the cliff
FAR = 14  # cap of the distances to the nearest block

PLAINS, FOREST, DESERT, SNOW, SAVANNA, BADLANDS = range(6)
_COVER = ("grass", "forest_grass", "sand", "snow", "dry_grass", "red_sand")
_UNDER = ("dirt", "dirt", "sandstone", "dirt", "dirt", "clay_orange")


@dataclass(frozen=True)
class VoxelWorld:
    """A world. Its arrays are read-only."""

    seed: int
    grid: np.ndarray  # uint8 [X, Y, Z]: block, or AIR + distance to the nearest block
    above: np.ndarray  # uint8 [X, Y, Z]: the same, but the distance counts only blocks at the same height or higher; for rising rays
    light: np.ndarray  # uint8 [X, Y, Z]: light in air cells next to a block
    starts: np.ndarray  # int32 [n, 3]: cells on dry open ground within `walkable`, those near buildings first
    walkable: np.ndarray  # bool [X, Y]: open ground that can be reached from every start

    @property
    def addresses(self) -> np.ndarray:
        """Memory addresses of `grid`, `above` and `light`, int64 [1, 3], for compiled code (addresses.py). A copy has other addresses."""
        return np.array([[self.grid.ctypes.data, self.above.ctypes.data, self.light.ctypes.data]], np.int64)


def generate(seed: int) -> VoxelWorld:
    """Generate the world of `seed`. Takes about a third of a second after compilation."""
    rng = np.random.default_rng([seed, 0x5EED])
    height, biome = _ground(rng)
    sites = _sites(rng, height)
    ground = np.round(height).astype(np.int32)
    road = _roads(rng, sites, ground)

    grid = np.zeros((WIDTH, WIDTH, DEPTH), np.uint8)
    cover = np.array([NUMBER[name] for name in _COVER], np.uint8)[biome]
    under = np.array([NUMBER[name] for name in _UNDER], np.uint8)[biome]
    _dress(rng, ground, biome, cover)
    cover[road > 0] = np.where(biome == DESERT, NUMBER["path"], NUMBER["gravel"])[road > 0]
    bands = np.array([NUMBER[n] for n in ("clay_orange", "clay_white", "clay_orange", "clay_brown", "red_sand")], np.uint8)
    _fill(grid, ground, cover, under, biome == BADLANDS, bands, road, NUMBER["oak_planks"], NUMBER["stone"], SEA)
    _tunnels(rng, grid, ground)

    taken = road > 0
    for site in sites:
        structures.build(grid, rng, site, int(ground[site.x, site.y]), int(biome[site.x, site.y]), SEA)
        reach = site.reach + 1
        taken[site.x - reach : site.x + reach + 1, site.y - reach : site.y + reach + 1] = True
    _plant(rng, grid, ground, biome, taken)
    _border(rng, grid, ground)

    solid_top = _tops(grid)
    above = grid.copy()
    distance(grid, FAR, True)
    distance(above, FAR, False)
    light = np.empty_like(grid)
    bake_light(grid, light, SUN)
    walkable, starts = _starts(rng, solid_top, ground, sites)
    for array in (grid, above, light, starts, walkable):
        array.setflags(write=False)
    return VoxelWorld(seed, grid, above, light, starts, walkable)


# ground


def _noise(rng: np.random.Generator, wave: float) -> np.ndarray:
    """Smooth noise over the world, about in [-1, 1], with a wavelength of about `wave` blocks: float64 [X, Y]."""
    count = int(WIDTH / wave) + 3
    knots = rng.uniform(-1, 1, (count, count))
    at = np.arange(WIDTH) / wave + rng.uniform()
    low, part = at.astype(int), at % 1
    part = part**3 * (part * (6 * part - 15) + 10)
    rows = knots[low] * (1 - part[:, None]) + knots[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _rank(field: np.ndarray) -> np.ndarray:
    """Quantile of each value. Thresholds on quantiles give every world the same share of each biome."""
    order = np.empty(field.size)
    order[field.ravel().argsort(kind="stable")] = np.linspace(0, 1, field.size)
    return order.reshape(field.shape)


def _ground(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hills = 0.62 * _noise(rng, 62) + 0.3 * _noise(rng, 30) + 0.1 * _noise(rng, 13)
    rough = _rank(_noise(rng, 80))  # scales the hills
    height = SEA + 2.6 + 1.5 * hills + 11 * np.maximum(hills, -0.08) * (0.35 + 0.9 * rough)
    lake = _rank(0.5 * _noise(rng, 46) + 0.35 * _noise(rng, 27) + 0.15 * _noise(rng, 11))
    height -= np.clip((lake - 0.8) / 0.2, 0, 1) * (height - SEA + 7)  # lakes, 4 or 5 blocks deep
    heat = _rank(_noise(rng, 84) + 0.16 * _noise(rng, 18))
    rain = _rank(_noise(rng, 84) + 0.16 * _noise(rng, 18))
    biome = np.full(height.shape, PLAINS)
    biome[rain > 0.55] = FOREST
    biome[(heat > 0.66) & (rain < 0.52)] = DESERT
    biome[(heat > 0.7) & (rain >= 0.52)] = SAVANNA
    biome[(heat > 0.82) & (rain >= 0.3) & (rain < 0.75)] = BADLANDS
    biome[heat < 0.26] = SNOW
    # badlands rise in terraces
    steps = SEA + 2 + 4 * np.floor((height - SEA - 2) / 4) + np.clip(4 * (((height - SEA - 2) / 4) % 1) * 2.2 - 2.4, 0, 4)
    height = np.where((biome == BADLANDS) & (height > SEA + 2), 0.35 * height + 0.65 * steps, height)
    return np.clip(height, 8, DEPTH - 30), biome


def _sites(rng: np.random.Generator, height: np.ndarray) -> list[structures.Site]:
    """The sites of houses and landmarks, at most one per cell of a jittered grid. Levels the ground of each in `height`, in place."""
    count = WIDTH // CELL
    villages = [(int(a), int(b)) for a, b in rng.permutation([(i, j) for i in range(2, count - 2, 3) for j in range(2, count - 2, 3)])[:6]]
    kinds = list(structures.LANDMARKS)
    pile: list[str] = []
    sites = []
    for i in range(count):
        for j in range(count):
            village = next((v for v in villages if max(abs(i - v[0]), abs(j - v[1])) <= 1), None)
            if not pile:
                pile = list(rng.permutation(kinds))
            centre = village == (i, j)
            kind = "house" if village and not centre else "well" if centre and rng.random() < 0.4 else pile.pop()
            keep = village is not None or rng.random() < 0.72
            pull = 0.3 if village else 1.0  # less jitter in villages
            x, y = (int(c * CELL + CELL / 2 + 2 + pull * rng.uniform(-6, 6)) for c in (i, j))
            if village and not centre:  # move houses towards the village's centre
                x -= 5 * (i - village[0])
                y -= 5 * (j - village[1])
            reach = 5 if kind == "house" else structures.LANDMARKS[kind][1]
            if not keep or min(x, y) < BORDER + 10 or max(x, y) > WIDTH - BORDER - 11:
                continue
            level = float(np.median(height[x - reach : x + reach + 1, y - reach : y + reach + 1]))
            if level < SEA + 0.6 and (village or rng.random() < 0.35):
                continue  # else the site becomes an island
            level = round(max(level, SEA + 1))
            out = 6
            box = np.s_[x - reach - out : x + reach + out + 1, y - reach - out : y + reach + out + 1]
            side = np.abs(np.arange(-reach - out, reach + out + 1))
            blend = np.clip(1 - (np.maximum(side[:, None], side[None]) - reach - 1) / out, 0, 1)
            height[box] += blend * (level - height[box])
            face = (village[0] * CELL + CELL // 2 - x, village[1] * CELL + CELL // 2 - y) if village else tuple(rng.uniform(-1, 1, 2))
            sites.append(structures.Site(x, y, reach, str(kind), face, village))
    return sites


def _roads(rng: np.random.Generator, sites: list[structures.Site], ground: np.ndarray) -> np.ndarray:
    """Winding paths, int [X, Y], 1 on a path: from each house to its village's centre, and from landmarks to a village nearby."""
    road = np.zeros_like(ground)
    centres = {s.village: s for s in sites if s.village and s.kind != "house"}
    for site in sites:
        if site.village:
            ends = [centres[site.village]] if site.village in centres and site.kind == "house" else []
        else:
            near = sorted(centres.values(), key=lambda s: (s.x - site.x) ** 2 + (s.y - site.y) ** 2)
            ends = [s for s in near[:1] if (s.x - site.x) ** 2 + (s.y - site.y) ** 2 < 62**2]
        for end in ends:
            length = int(np.hypot(end.x - site.x, end.y - site.y)) * 2 + 2
            t = np.linspace(0, 1, length)
            sway = rng.uniform(-4, 4) * np.sin(np.pi * t) if not site.village else 0 * t
            ux, uy = (end.x - site.x) / (length / 2), (end.y - site.y) / (length / 2)
            x = np.round(site.x + (end.x - site.x) * t - uy * sway).astype(int).clip(BORDER + 2, WIDTH - BORDER - 3)
            y = np.round(site.y + (end.y - site.y) * t + ux * sway).astype(int).clip(BORDER + 2, WIDTH - BORDER - 3)
            road[x, y] = 1
            road[x, y + 1] = 1
    return road


def _dress(rng: np.random.Generator, ground: np.ndarray, biome: np.ndarray, cover: np.ndarray) -> None:
    """Add beaches, bare rock and flower fields to `cover`, in place."""
    flowers = _noise(rng, 12)
    meadow = (biome == PLAINS) & (rng.random(ground.shape) < 0.4)
    cover[meadow & (flowers > 0.45)] = NUMBER["flowers_red"]
    cover[meadow & (flowers < -0.45)] = NUMBER["flowers_yellow"]
    cover[(ground <= SEA) & (biome != SNOW)] = NUMBER["sand"]
    cover[(ground < SEA - 1)] = NUMBER["gravel"]
    rock = _noise(rng, 9) > 0.66
    cover[rock & (ground > SEA + 7) & (biome != BADLANDS)] = NUMBER["stone"]


@njit(cache=True)
def _fill(grid, ground, cover, under, layered, bands, road, planks, stone, sea):
    for x in range(grid.shape[0]):
        for y in range(grid.shape[1]):
            top = ground[x, y]  # first free cell
            for z in range(top):
                if layered[x, y] and z < top - 1:
                    grid[x, y, z] = bands[z % len(bands)]
                elif z == top - 1:
                    grid[x, y, z] = cover[x, y]
                elif z >= top - 4:
                    grid[x, y, z] = under[x, y]
                else:
                    grid[x, y, z] = stone
            for z in range(top, sea):
                grid[x, y, z] = WATER
            if road[x, y] > 0 and top < sea:
                grid[x, y, sea - 1] = planks  # a bridge


@njit(cache=True)
def _dig(grid, ground, xs, ys, floor, radius, cover):
    for n in range(len(xs)):
        reach = int(radius) + 1
        for x in range(int(xs[n]) - reach, int(xs[n]) + reach + 1):
            for y in range(int(ys[n]) - reach, int(ys[n]) + reach + 1):
                if not (8 <= x < grid.shape[0] - 8 and 8 <= y < grid.shape[1] - 8):
                    continue
                flat = (x - xs[n]) ** 2 + (y - ys[n]) ** 2
                if flat > radius * radius or ground[x, y] <= floor:
                    continue
                top = floor + 2 + int(1.5 * (radius * radius - flat) ** 0.5)
                for z in range(floor, min(top, grid.shape[2] - 1)):
                    grid[x, y, z] = 0
                grid[x, y, floor - 1] = cover


def _tunnels(rng: np.random.Generator, grid: np.ndarray, ground: np.ndarray) -> None:
    """Dig level tunnels through hills. Their floor is at the height of the land in front of the hill, so that a body can leave again."""
    high = np.argwhere(ground[24:-24, 24:-24] > SEA + 8) + 24
    for _ in range(7 if len(high) else 0):
        x, y = high[rng.integers(len(high))]
        turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.05, 90))
        xs, ys = x + np.cumsum(np.cos(turn)) - 45 * np.cos(turn[0]), y + np.cumsum(np.sin(turn)) - 45 * np.sin(turn[0])
        inside = (xs > 12) & (xs < WIDTH - 13) & (ys > 12) & (ys < WIDTH - 13)
        xs, ys = xs[inside], ys[inside]
        if len(xs) < 30:
            continue
        ends = max(int(ground[int(xs[0]), int(ys[0])]), int(ground[int(xs[-1]), int(ys[-1])]), SEA + 1)
        if ends > int(ground[x, y]) - 5:
            continue
        _dig(grid, ground, xs, ys, ends, rng.uniform(1.8, 2.6), NUMBER["gravel"])


# plants and border


def _plant(rng: np.random.Generator, grid: np.ndarray, ground: np.ndarray, biome: np.ndarray, taken: np.ndarray) -> None:
    grove = _noise(rng, 24)
    share = np.array([0.004, 0.024, 0.006, 0.012, 0.006, 0.003])[biome] * np.clip(1 + 1.6 * grove, 0.15, 2.4)
    wood = int(rng.integers(3))  # the tree type of this world's plains
    free = (rng.random(ground.shape) < share) & ~taken & (ground > SEA)
    free[: BORDER + 6] = free[-BORDER - 6 :] = free[:, : BORDER + 6] = free[:, -BORDER - 6 :] = False
    for x, y in np.argwhere(free):
        z = int(ground[x, y])
        if grid[x, y, z - 1] == 0 or grid[x, y, z] != 0 or (grid[x - 1 : x + 2, y - 1 : y + 2, z + 1] != 0).any():
            continue  # a tunnel is open here, or the place is occupied
        structures.tree(grid, rng, int(x), int(y), z, int(biome[x, y]), wood)


def _border(rng: np.random.Generator, grid: np.ndarray, ground: np.ndarray) -> None:
    """Build a cliff around the world, 9 to 14 blocks above the land in front of it."""
    ragged = np.abs(_noise(rng, 11))
    side = np.minimum(np.arange(WIDTH), np.arange(WIDTH)[::-1])
    edge = np.minimum(side[:, None], side[None])
    stone, mossy = NUMBER["stone"], NUMBER["mossy_cobble"]
    for x, y in np.argwhere(edge < BORDER):
        near = int(ground[min(max(x, BORDER), WIDTH - BORDER - 1), min(max(y, BORDER), WIDTH - BORDER - 1)])
        near = max(near, SEA)
        top = near + 9 + int(5 * ragged[x, y]) + int(0.8 * (BORDER - edge[x, y]))
        grid[x, y, :top] = stone
        grid[x, y, near + 3 : near + 5] = mossy  # a band that marks the border
        grid[x, y, top - 1] = NUMBER["grass"]


# tables for rendering and for start positions


@njit(cache=True)
def _tops(grid):
    """Lowest cell above all blocks of each column: int32 [X, Y]."""
    tops = np.zeros(grid.shape[:2], np.int32)
    for x in range(grid.shape[0]):
        for y in range(grid.shape[1]):
            for z in range(grid.shape[2] - 1, -1, -1):
                if grid[x, y, z] != 0:
                    tops[x, y] = z + 1
                    break
    return tops


@njit(cache=True)
def distance(grid, far, below):
    """Replace empty cells (0) by AIR + the Chebyshev distance to the nearest block, capped at `far`, in place.

    Without `below`, lower blocks are ignored. Two sweeps are exact; each reads the half of the 26 neighbours that it has passed.
    """
    size_x, size_y, size_z = grid.shape
    near = np.empty(grid.shape, np.uint8)  # 0 in blocks
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                near[x, y, z] = far if grid[x, y, z] == 0 else 0
    around = np.full(size_z + 2, 254, np.uint8)  # minimum over the neighbouring columns already passed, padded by one cell at each end
    for sweep in range(2):
        one = 1 if sweep == 0 else -1
        for a in range(size_x):
            x = a if sweep == 0 else size_x - 1 - a
            for b in range(size_y):
                y = b if sweep == 0 else size_y - 1 - b
                column = near[x, y]
                around[1:-1] = far
                for n in range(4):
                    i, j = (x - one, y + (n - 1)) if n < 3 else (x, y - one)
                    if 0 <= i < size_x and 0 <= j < size_y:
                        beside = near[i, j]
                        for z in range(size_z):
                            around[z + 1] = min(around[z + 1], beside[z])
                for z in range(size_z):
                    low = min(around[z + 1], around[z + 2])
                    if below:
                        low = min(low, around[z])
                    column[z] = min(column[z], np.uint8(low + 1))
                for z in range(1, size_z if below else 0):
                    column[z] = min(column[z], np.uint8(column[z - 1] + 1))
                for z in range(size_z - 2, -1, -1):
                    column[z] = min(column[z], np.uint8(column[z + 1] + 1))
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                if near[x, y, z] > 0:
                    grid[x, y, z] = AIR + near[x, y, z]


@njit(fastmath=True, cache=True)
def _open(grid, x, y, z, dx, dy, dz, reach):
    """Whether no solid block lies within `reach` blocks of the cell (x, y, z) along (dx, dy, dz)."""
    px, py, pz = x + 0.5, y + 0.5, z + 0.5
    t = 0.0
    while t < reach:
        i, j, k = int(px + t * dx), int(py + t * dy), int(pz + t * dz)
        if i < 0 or j < 0 or i >= grid.shape[0] or j >= grid.shape[1] or k >= grid.shape[2]:
            return True
        cell = grid[i, j, k]
        if cell < AIR:
            if cell != WATER:
                return False
            t += 0.7
        else:
            t += max(0.7, cell - AIR - 1.0)
    return True


@njit(cache=True)
def bake_light(grid, light, sun):
    """Fill `light` with 0 to 255: skylight from five directions, and the sun. Solid cells get a low value, which darkens corners."""
    for x in range(grid.shape[0]):
        for y in range(grid.shape[1]):
            for z in range(grid.shape[2]):
                cell = grid[x, y, z]
                if cell < AIR and cell != WATER:
                    light[x, y, z] = 112
                elif cell > AIR + 1:
                    light[x, y, z] = 255
                else:
                    share = 0.5
                    if _open(grid, x, y, z, sun[0], sun[1], sun[2], 24.0):
                        share += 0.28
                    if _open(grid, x, y, z, 0.05, 0.05, 0.99, 24.0):
                        share += 0.1
                    for n in range(4):
                        dx = 0.75 if n == 0 else -0.75 if n == 1 else 0.1
                        dy = 0.75 if n == 2 else -0.75 if n == 3 else 0.1
                        if _open(grid, x, y, z, dx, dy, 0.66, 12.0):
                            share += 0.03
                    light[x, y, z] = int(255 * share)


@njit(cache=True)
def _regions(height, allowed):
    """Label the regions that are connected by steps of at most one block in height: int32 [X, Y], 0 where not allowed."""
    label = np.zeros(height.shape, np.int32)
    stack = np.empty((height.size, 2), np.int32)
    count = 0
    for a in range(height.shape[0]):
        for b in range(height.shape[1]):
            if label[a, b] or not allowed[a, b]:
                continue
            count += 1
            label[a, b] = count
            stack[0, 0], stack[0, 1], top = a, b, 1
            while top:
                top -= 1
                x, y = stack[top, 0], stack[top, 1]
                for n in range(4):
                    i, j = x + (n == 0) - (n == 1), y + (n == 2) - (n == 3)
                    if not (0 <= i < height.shape[0] and 0 <= j < height.shape[1]) or label[i, j]:
                        continue
                    if allowed[i, j] and abs(height[i, j] - height[x, y]) <= 1:
                        label[i, j] = count
                        stack[top, 0], stack[top, 1] = i, j
                        top += 1
    return label


def _starts(rng: np.random.Generator, tops: np.ndarray, ground: np.ndarray, sites: list[structures.Site]) -> tuple[np.ndarray, np.ndarray]:
    """The largest connected region of open ground, bool [X, Y], and start cells in it, int32 [n, 3], shuffled, near buildings first."""
    open_ground = tops == np.maximum(ground, SEA)  # without buildings and plants, but with bridges and the surface of water
    label = _regions(tops, open_ground)
    counts = np.bincount(label.ravel())
    counts[0] = 0
    walkable = label == counts.argmax()
    dry = walkable & (ground > SEA)
    roomy = dry.copy()  # not next to a trunk or a wall
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        roomy &= np.abs(np.roll(tops, (dx, dy), (0, 1)) - tops) <= 1
    roomy[:24] = roomy[-24:] = roomy[:, :24] = roomy[:, -24:] = False
    near = np.zeros_like(dry)
    for site in sites:
        near[max(site.x - 14, 0) : site.x + 15, max(site.y - 14, 0) : site.y + 15] = True
    cells = np.concatenate([rng.permutation(np.argwhere(roomy & near)), rng.permutation(np.argwhere(roomy & ~near))])
    starts = np.concatenate([cells, tops[cells[:, 0], cells[:, 1]][:, None]], 1).astype(np.int32)
    return walkable, starts
