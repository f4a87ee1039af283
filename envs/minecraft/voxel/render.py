"""First-person pictures of the voxel world: one ray per pixel, walked from cell to cell.

A ray reads one byte per cell. Air tells how far the nearest block is, so open space is crossed in strides. A hit is lit by the
direction of its face, by the light baked into the cells before it (blended between cells, which also darkens corners), and fades
into the sky with distance. Textures are read from the mip level whose texels are as large as the pixel, blended with the next
coarser one, so that far surfaces do not flicker. Axes: x, y horizontal, z up; yaw 0 looks along +x, counter-clockwise positive.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from wmgym.envs.minecraft.voxel.blocks import AIR, NUMBER, WATER

FIELD_OF_VIEW = math.radians(75)  # vertical
VIEW_DISTANCE = 60.0  # blocks; everything further is sky
FOG_START = 22.0

SUN = np.array([0.62, 0.55, 0.56]) / np.linalg.norm([0.62, 0.55, 0.56])  # towards the sun
_SUN_X, _SUN_Y, _SUN_Z = (float(c) for c in SUN)
_LAMP = NUMBER["lamp"]
_HORIZON = (198.0, 220.0, 240.0)
_ZENITH = (96.0, 152.0, 232.0)
_DEEP = (34.0, 82.0, 158.0)  # what water fades to


@njit(fastmath=True, cache=True)
def _ray(grid, light, atlas, x0, y0, z0, dx, dy, dz, texels_per_block):
    """Colour (r, g, b) seen from (x0, y0, z0) along the unit vector (dx, dy, dz)."""
    up = max(0.0, dz)
    fade = 1.0 - (1.0 - up) * (1.0 - up)
    sky_r = _HORIZON[0] + (_ZENITH[0] - _HORIZON[0]) * fade
    sky_g = _HORIZON[1] + (_ZENITH[1] - _HORIZON[1]) * fade
    sky_b = _HORIZON[2] + (_ZENITH[2] - _HORIZON[2]) * fade

    size_x, size_y, size_z = grid.shape
    step_x = 1 if dx > 0 else -1
    step_y = 1 if dy > 0 else -1
    step_z = 1 if dz > 0 else -1
    inv_x = 1.0 / dx if abs(dx) > 1e-9 else 1e9 * step_x
    inv_y = 1.0 / dy if abs(dy) > 1e-9 else 1e9 * step_y
    inv_z = 1.0 / dz if abs(dz) > 1e-9 else 1e9 * step_z
    side_x = 1 if dx > 0 else 0
    side_y = 1 if dy > 0 else 0
    side_z = 1 if dz > 0 else 0
    abs_x, abs_y, abs_z = abs(inv_x), abs(inv_y), abs(inv_z)
    stride = min(abs_x, min(abs_y, abs_z))  # length of the ray per cell along its main axis

    # the ray ends where it leaves the box of the world
    end = min(((size_x if side_x else 0) - x0) * inv_x, ((size_y if side_y else 0) - y0) * inv_y)
    end = min(min(end, ((size_z if side_z else 0) - z0) * inv_z), VIEW_DISTANCE) - 1e-4

    x, y, z = int(x0), int(y0), int(z0)
    next_x = (x + side_x - x0) * inv_x
    next_y = (y + side_y - y0) * inv_y
    next_z = (z + side_z - z0) * inv_z
    t = 0.0
    axis = 2
    block = 0
    wet_from = -1.0  # where the ray entered the water it is in
    wet = 0.0  # length of the way through water
    surface = False
    while t < end:
        cell = grid[x, y, z]
        if cell >= AIR:
            if wet_from >= 0.0:
                wet += t - wet_from
                wet_from = -1.0
            free = cell - AIR
            if free > 2:
                t += (free - 1) * stride
                if t >= end:
                    break
                x, y, z = int(x0 + t * dx), int(y0 + t * dy), int(z0 + t * dz)
                next_x = (x + side_x - x0) * inv_x
                next_y = (y + side_y - y0) * inv_y
                next_z = (z + side_z - z0) * inv_z
                continue
        elif cell == WATER:
            if wet_from < 0.0:
                wet_from = t
                surface = surface or t > 0.0
        elif t > 0.0:
            block = cell
            break
        if next_x < next_y and next_x < next_z:
            t = next_x
            next_x += abs_x
            x += step_x
            axis = 0
        elif next_y < next_z:
            t = next_y
            next_y += abs_y
            y += step_y
            axis = 1
        else:
            t = next_z
            next_z += abs_z
            z += step_z
            axis = 2
    t = min(t, end)
    if wet_from >= 0.0:
        wet += t - wet_from

    red, green, blue = sky_r, sky_g, sky_b
    if block:
        px, py, pz = x0 + t * dx, y0 + t * dy, z0 + t * dz
        face = 0
        if axis == 0:
            across, down, slope = py - y, 1.0 - (pz - z), abs(dx)
            shade = 0.70 if step_x > 0 else 0.90  # a ray going up x meets the face that looks down x, away from the sun
            fx, u, w = x - step_x, py - 0.5, pz - 0.5
        elif axis == 1:
            across, down, slope = px - x, 1.0 - (pz - z), abs(dy)
            shade = 0.62 if step_y > 0 else 0.82
            fx, u, w = y - step_y, px - 0.5, pz - 0.5
        else:
            across, down, slope = px - x, 1.0 - (py - y), abs(dz)
            shade = 0.55 if step_z > 0 else 1.0
            face = 2 if step_z > 0 else 1
            fx, u, w = z - step_z, px - 0.5, py - 0.5

        # light of the four cells around the hit, in the plane before the face
        lu, lw = int(math.floor(u)), int(math.floor(w))
        part_u, part_w = u - lu, w - lw
        glow = 0.0
        for i in range(2):
            for j in range(2):
                share = (part_u if i else 1.0 - part_u) * (part_w if j else 1.0 - part_w)
                if axis == 0:
                    a, b, c = fx, lu + i, lw + j
                elif axis == 1:
                    a, b, c = lu + i, fx, lw + j
                else:
                    a, b, c = lu + i, lw + j, fx
                a = min(max(a, 0), size_x - 1)
                b = min(max(b, 0), size_y - 1)
                c = min(max(c, 0), size_z - 1)
                glow += share * light[a, b, c]
        shade *= glow / 255.0
        if block == _LAMP:
            shade = 1.0

        # texels under this pixel -> two neighbouring mip levels and the share of the coarser
        under = t * texels_per_block / math.sqrt(max(slope, 0.04))
        level, start, width = 0, 0, 16
        while under > 1.0 and level < 4:
            under *= 0.5
            level += 1
            start += width * width
            width //= 2
        across, down = min(max(across, 0.0), 0.9999), min(max(down, 0.0), 0.9999)
        coarse = start + int(down * width) * width + int(across * width)
        red, green, blue = float(atlas[block, face, coarse, 0]), float(atlas[block, face, coarse, 1]), float(atlas[block, face, coarse, 2])
        if level > 0:
            start -= 4 * width * width
            width *= 2
            fine = start + int(down * width) * width + int(across * width)
            share = max(0.0, 2.0 - 2.0 * under)
            red += share * (atlas[block, face, fine, 0] - red)
            green += share * (atlas[block, face, fine, 1] - green)
            blue += share * (atlas[block, face, fine, 2] - blue)
        red, green, blue = red * shade, green * shade, blue * shade
    else:
        towards = dx * _SUN_X + dy * _SUN_Y + dz * _SUN_Z
        if towards > 0.98:  # the sun, and a halo round it
            disc = 1.0 if towards > 0.9955 else 0.35 * (towards - 0.98) / 0.0155
            red, green, blue = red + (255.0 - red) * disc, green + (250.0 - green) * disc, blue + (214.0 - blue) * disc

    if wet > 0.0:
        share = 1.0 - math.exp(-0.22 * wet)
        if surface:
            share = 0.42 + 0.58 * share
        red += share * (_DEEP[0] - red)
        green += share * (_DEEP[1] - green)
        blue += share * (_DEEP[2] - blue)
    if block or wet > 0.0:
        far = (t - FOG_START) / (VIEW_DISTANCE - FOG_START)
        if far > 0.0:
            far = min(far, 1.0)
            far = far * far * (3.0 - 2.0 * far)
            red += far * (sky_r - red)
            green += far * (sky_g - green)
            blue += far * (sky_b - blue)
    return red, green, blue


@njit(fastmath=True, cache=True)
def draw(grid, above, light, atlas, x, y, z, yaw, pitch, out):
    """Fill `out`, uint8 [H, W, 3], with the view from the eye at (x, y, z)."""
    height, width = out.shape[0], out.shape[1]
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    half = math.tan(FIELD_OF_VIEW / 2)
    texels_per_block = 16 * 2 * half / height
    for row in range(height):
        v = (1 - (2 * row + 1) / height) * half
        for column in range(width):
            u = ((2 * column + 1) / width - 1) * half * width / height
            # ahead + u * right + v * up
            dx = cos_pitch * cos_yaw + u * sin_yaw - v * sin_pitch * cos_yaw
            dy = cos_pitch * sin_yaw - u * cos_yaw - v * sin_pitch * sin_yaw
            dz = sin_pitch + v * cos_pitch
            unit = 1 / math.sqrt(1 + u * u + v * v)
            red, green, blue = _ray(above if dz >= 0.0 else grid, light, atlas, x, y, z, dx * unit, dy * unit, dz * unit, texels_per_block)
            out[row, column, 0] = np.uint8(red + 0.5)
            out[row, column, 1] = np.uint8(green + 0.5)
            out[row, column, 2] = np.uint8(blue + 0.5)
