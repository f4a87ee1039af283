"""Ray caster of the voxel world: first-person frames and depth, with one ray per pixel.

A ray reads one byte per cell. An air cell holds the distance to the nearest block, so rays skip open space. The light of a hit depends on
the direction of its face and on the baked light of the cells in front of it (interpolated between cells, which also darkens corners). Hits
fade into the sky with distance. Texture lookups interpolate between the two mip levels nearest to the pixel's size, so that far surfaces
do not flicker. Axes: x, y horizontal, z up; yaw 0 looks along +x, counter-clockwise positive.

A ray is the eye plus s times a direction whose component along the view is 1; `norm`, the length of the direction, converts s to blocks.
`s` is the depth along the optical axis, which `measure` stores.
Pixels of a row share setup, and cells have flat indices, because most rays end after about five cells: setting up and colouring a pixel
takes longer than the traversal.
"""

from __future__ import annotations

import math

import numpy as np

from wmgym.envs.minecraft.voxel.addresses import cells_at
from wmgym.envs.minecraft.voxel.blocks import AIR, NUMBER, WATER
from wmgym.envs.minecraft.voxel.textures import LEVEL_START
from wmgym.jit import njit

FIELD_OF_VIEW = math.radians(75)  # vertical
VIEW_DISTANCE = 60.0  # blocks; everything further is sky
FOG_START = 22.0

SUN = np.array([0.62, 0.55, 0.56]) / np.linalg.norm([0.62, 0.55, 0.56])  # towards the sun
_SUN_X, _SUN_Y, _SUN_Z = (float(c) for c in SUN)
_LAMP = NUMBER["lamp"]
_HORIZON = (198.0, 220.0, 240.0)
_ZENITH = (96.0, 152.0, 232.0)
_DEEP = (34.0, 82.0, 158.0)  # what water fades to
_TEXELS = 341  # per face, all mip levels
_STARTS = np.array(LEVEL_START)
# by 2 * axis + (1 if the ray goes up that axis): a ray going up x meets the face that looks down x, away from the sun
_SHADES = np.array([0.90, 0.70, 0.82, 0.62, 1.0, 0.55])
_FACES = np.array([0, 0, 0, 0, 1, 2]) * _TEXELS  # side, top, bottom


@njit(fastmath=True, inline="always")
def _sky(up):
    """Colour of the sky along a unit vector with z component `up`."""
    rest = 1.0 - max(0.0, up)
    fade = 1.0 - rest * rest
    return (
        _HORIZON[0] + (_ZENITH[0] - _HORIZON[0]) * fade,
        _HORIZON[1] + (_ZENITH[1] - _HORIZON[1]) * fade,
        _HORIZON[2] + (_ZENITH[2] - _HORIZON[2]) * fade,
    )


@njit(fastmath=True, inline="always")
def _lit(light, before, first, second, along_first, along_second, size_first, size_second):
    """Light, 0 to 1, interpolated between four cells in the plane in front of a hit face; `before` is the cell in front of the hit."""
    at_first, at_second = int(first), int(second)
    low_first = at_first - 1 if first - at_first < 0.5 else at_first
    low_second = at_second - 1 if second - at_second < 0.5 else at_second
    part_first, part_second = first - 0.5 - low_first, second - 0.5 - low_second
    a = (max(low_first, 0) - at_first) * along_first
    b = (min(low_first + 1, size_first - 1) - at_first) * along_first
    c = before + (max(low_second, 0) - at_second) * along_second
    d = before + (min(low_second + 1, size_second - 1) - at_second) * along_second
    low = (1.0 - part_first) * light[a + c] + part_first * light[b + c]
    high = (1.0 - part_first) * light[a + d] + part_first * light[b + d]
    return (low + part_second * (high - low)) * (1.0 / 255.0)


@njit(fastmath=True, inline="always")
def _texel(atlas, face, level, across, down):
    """Index in the atlas of the texel at (across, down) in [0, 1) of a face and mip level."""
    width = 16 >> level
    return 3 * (face + _STARTS[level] + int(down * width) * width + int(across * width))


@njit(fastmath=True, inline="always")
def _walk(cells, along_x, along_y, x0, y0, z0, dx, dy, dz, inv_x, inv_y, inv_z, end):
    """Follow the ray from (x0, y0, z0) along (dx, dy, dz), up to `end` times that vector, to the first opaque block.

    inv_*: reciprocals of the vector. cells: flat array of all cells; along_x, along_y: its strides in x and y.
    Returns the block (0: none), s at the hit, the index of its cell, the axis of the face that was hit (0, 1, 2), the part of s that is in
    water, and whether the ray entered water from outside.
    """
    ahead_x, ahead_y, ahead_z = int(inv_x > 0), int(inv_y > 0), int(inv_z > 0)
    step_x = along_x if inv_x > 0 else -along_x
    step_y = along_y if inv_y > 0 else -along_y
    step_z = 1 if inv_z > 0 else -1
    abs_x, abs_y, abs_z = abs(inv_x), abs(inv_y), abs(inv_z)
    stride = min(abs_x, min(abs_y, abs_z))  # of s, per cell along the main axis

    x, y, z = int(x0), int(y0), int(z0)
    cell_at = x * along_x + y * along_y + z
    next_x = (x + ahead_x - x0) * inv_x
    next_y = (y + ahead_y - y0) * inv_y
    next_z = (z + ahead_z - z0) * inv_z
    s = 0.0
    axis = 2
    block = 0
    wet_from = -1.0  # s where the ray entered the present water
    wet = 0.0  # part of s in water
    surface = False
    while s < end:
        cell = cells[cell_at]
        if cell >= AIR:
            if wet_from >= 0.0:
                wet += s - wet_from
                wet_from = -1.0
            if cell > AIR + 2:
                s += (cell - (AIR + 1)) * stride
                if s >= end:
                    break
                x, y, z = int(x0 + s * dx), int(y0 + s * dy), int(z0 + s * dz)
                cell_at = x * along_x + y * along_y + z
                next_x = (x + ahead_x - x0) * inv_x
                next_y = (y + ahead_y - y0) * inv_y
                next_z = (z + ahead_z - z0) * inv_z
                continue
        elif cell == WATER:
            if wet_from < 0.0:
                wet_from = s
                surface = surface or s > 0.0
        elif s > 0.0:
            block = cell
            break
        if next_x < next_y and next_x < next_z:
            s = next_x
            next_x += abs_x
            cell_at += step_x
            axis = 0
        elif next_y < next_z:
            s = next_y
            next_y += abs_y
            cell_at += step_y
            axis = 1
        else:
            s = next_z
            next_z += abs_z
            cell_at += step_z
            axis = 2
    s = min(s, end)
    if wet_from >= 0.0:
        wet += s - wet_from
    return block, s, cell_at, axis, wet, surface


@njit(fastmath=True, inline="always")
def _ray(cells, light, atlas, size_x, size_y, size_z, x0, y0, z0, dx, dy, dz, inv_x, inv_y, inv_z, end, norm, texels_per_block):
    """Colour (r, g, b) along the ray from (x0, y0, z0) with direction (dx, dy, dz) of length `norm`, up to `end` times that vector.

    inv_*: their reciprocals. cells, light: all cells in one row, z fastest; atlas: all bytes in one row.
    """
    along_x, along_y = size_y * size_z, size_z
    block, s, cell_at, axis, wet, surface = _walk(cells, along_x, along_y, x0, y0, z0, dx, dy, dz, inv_x, inv_y, inv_z, end)
    t = s * norm
    if block:
        # position on the face: `first` and `second` are the coordinates along it; row 0 of a texture is at the largest `second`
        px, py, pz = x0 + s * dx, y0 + s * dy, z0 + s * dz
        is_x, is_z = axis == 0, axis == 2
        first, along_first, size_first = (py, along_y, size_y) if is_x else (px, along_x, size_x)
        second, along_second, size_second = (py, along_y, size_y) if is_z else (pz, 1, size_z)
        rises = int(inv_x > 0) if is_x else int(inv_z > 0) if is_z else int(inv_y > 0)
        step = along_x if is_x else 1 if is_z else along_y
        before = cell_at - (step if rises else -step)
        turn = 2 * axis + rises
        slope = (abs(dx) if is_x else abs(dz) if is_z else abs(dy)) / norm
        shade = _lit(light, before, first, second, along_first, along_second, size_first, size_second)
        shade *= _SHADES[turn]
        if block == _LAMP:
            shade = 1.0

        # texels per pixel -> two neighbouring mip levels and the weight of the coarser one
        under = t * texels_per_block / math.sqrt(max(slope, 0.04))
        level = 0 if under <= 1.0 else 1 if under <= 2.0 else 2 if under <= 4.0 else 3 if under <= 8.0 else 4
        across, down = min(first - int(first), 0.9999), min(1.0 - (second - int(second)), 0.9999)
        face = 3 * _TEXELS * block + _FACES[turn]
        n = _texel(atlas, face, level, across, down)
        red, green, blue = float(atlas[n]), float(atlas[n + 1]), float(atlas[n + 2])
        if level > 0:
            share = 2.0 - 2.0 * under / (1 << level)
            if share > 0.0:
                n = _texel(atlas, face, level - 1, across, down)
                red += share * (atlas[n] - red)
                green += share * (atlas[n + 1] - green)
                blue += share * (atlas[n + 2] - blue)
        red, green, blue = red * shade, green * shade, blue * shade
    else:
        red, green, blue = _sky(dz / norm)
        towards = (dx * _SUN_X + dy * _SUN_Y + dz * _SUN_Z) / norm
        if towards > 0.98:  # the sun and its halo
            disc = 1.0 if towards > 0.9955 else 0.35 * (towards - 0.98) / 0.0155
            red, green, blue = red + (255.0 - red) * disc, green + (250.0 - green) * disc, blue + (214.0 - blue) * disc

    if wet > 0.0:
        share = 1.0 - math.exp(-0.22 * wet * norm)
        if surface:
            share = 0.42 + 0.58 * share
        red += share * (_DEEP[0] - red)
        green += share * (_DEEP[1] - green)
        blue += share * (_DEEP[2] - blue)
    if t > FOG_START and (block or wet > 0.0):
        far = min((t - FOG_START) / (VIEW_DISTANCE - FOG_START), 1.0)
        far = far * far * (3.0 - 2.0 * far)
        sky_r, sky_g, sky_b = _sky(dz / norm)
        red += far * (sky_r - red)
        green += far * (sky_g - green)
        blue += far * (sky_b - blue)
    return red, green, blue


@njit(fastmath=True, inline="always")
def _across(height, width):
    """Offsets to the right of the columns at distance 1, [width], and an empty array for the rays of a row, which `_aim` fills."""
    half = math.tan(FIELD_OF_VIEW / 2)
    right = np.empty(width)
    for column in range(width):
        right[column] = ((2 * column + 1) / width - 1) * half * width / height
    return right, np.empty((6, width))


@njit(fastmath=True, inline="always")
def _aim(row, height, right, x, y, z, cos_yaw, sin_yaw, cos_pitch, sin_pitch, size_x, size_y, size_z, rays):
    """Fill the rays [6, width] of a row of pixels (dx, dy, their reciprocals, end, norm). Returns the shared dz and its reciprocal."""
    # directions are ahead + u * right + v * up; components are kept away from 0
    v = (1 - (2 * row + 1) / height) * math.tan(FIELD_OF_VIEW / 2)
    dz = sin_pitch + v * cos_pitch
    inv_z = 1.0 / dz if abs(dz) > 1e-9 else math.copysign(1e9, dz)
    end_z = ((size_z if dz > 0 else 0) - z) * inv_z
    level_x, level_y = (cos_pitch - v * sin_pitch) * cos_yaw, (cos_pitch - v * sin_pitch) * sin_yaw
    for column in range(len(right)):
        u = right[column]
        dx, dy = level_x + u * sin_yaw, level_y - u * cos_yaw
        inv_x = 1.0 / (dx if abs(dx) > 1e-9 else 1e-9)
        inv_y = 1.0 / (dy if abs(dy) > 1e-9 else 1e-9)
        norm = math.sqrt(1.0 + u * u + v * v)
        # the ray ends at the border of the world or at the view distance
        end = min(((size_x if inv_x > 0 else 0) - x) * inv_x, ((size_y if inv_y > 0 else 0) - y) * inv_y)
        rays[0, column], rays[1, column], rays[2, column], rays[3, column] = dx, dy, inv_x, inv_y
        rays[4, column] = min(min(end, end_z), VIEW_DISTANCE / norm) - 1e-4
        rays[5, column] = norm
    return dz, inv_z


@njit(fastmath=True)
def draw(grid, above, light, atlas, x, y, z, yaw, pitch, out):
    """Fill `out`, uint8 [H, W, 3], with the view from the eye at (x, y, z)."""
    height, width = out.shape[0], out.shape[1]
    size_x, size_y, size_z = grid.shape
    grid, above, light, atlas = grid.reshape(-1), above.reshape(-1), light.reshape(-1), atlas.reshape(-1)
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    texels_per_block = 16 * 2 * math.tan(FIELD_OF_VIEW / 2) / height
    right, rays = _across(height, width)
    for row in range(height):
        dz, inv_z = _aim(row, height, right, x, y, z, cos_yaw, sin_yaw, cos_pitch, sin_pitch, size_x, size_y, size_z, rays)
        cells = above if dz >= 0.0 else grid
        for column in range(width):
            red, green, blue = _ray(
                cells, light, atlas, size_x, size_y, size_z, x, y, z, rays[0, column], rays[1, column], dz,
                rays[2, column], rays[3, column], inv_z, rays[4, column], rays[5, column], texels_per_block,
            )  # fmt: skip
            out[row, column, 0] = np.uint8(red + 0.5)
            out[row, column, 1] = np.uint8(green + 0.5)
            out[row, column, 2] = np.uint8(blue + 0.5)


@njit(fastmath=True, cache=True)
def measure(grid, above, x, y, z, yaw, pitch, out):
    """Write to `out`, float32 [H, W], the depth of every pixel that shows a block, from the eye at (x, y, z).

    Depth is in blocks along the optical axis. Water is looked through. Pixels of the sky, and of what is too far to be seen, stay as
    they are.
    """
    height, width = out.shape
    size_x, size_y, size_z = grid.shape
    grid, above = grid.reshape(-1), above.reshape(-1)
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    right, rays = _across(height, width)
    for row in range(height):
        dz, inv_z = _aim(row, height, right, x, y, z, cos_yaw, sin_yaw, cos_pitch, sin_pitch, size_x, size_y, size_z, rays)
        cells = above if dz >= 0.0 else grid
        for column in range(width):
            block, s, _, _, _, _ = _walk(
                cells, size_y * size_z, size_z, x, y, z, rays[0, column], rays[1, column], dz,
                rays[2, column], rays[3, column], inv_z, rays[4, column],
            )  # fmt: skip
            if block:
                out[row, column] = s


@njit(cache=True)
def draw_lanes(worlds, shape, atlas, bodies, eyes, lanes, out):
    """Fill `out`, uint8 [n, H, W, 3], with the views of `lanes`, int64 [n], from `eyes` above the feet of bodies [N, 7].

    worlds: int64 [N, 3], the addresses of each lane's `grid`, `above` and `light`; shape: theirs.
    """
    for n in range(len(lanes)):
        lane = lanes[n]
        grid, above, light = cells_at(worlds[lane, 0], shape), cells_at(worlds[lane, 1], shape), cells_at(worlds[lane, 2], shape)
        x, y, z, yaw, pitch = bodies[lane, 0], bodies[lane, 1], bodies[lane, 2], bodies[lane, 3], bodies[lane, 4]
        draw(grid, above, light, atlas, x, y, z + eyes, yaw, pitch, out[n])
