"""The physics of a body in the voxel world: 20 ticks per second, with Minecraft's constants.

A body is 0.6 x 0.6 x 1.8 blocks with its feet at (x, y, z) and its eyes 1.62 blocks above them. The action sets the horizontal speed
(there is no inertia), so walking covers exactly 4.317 / 20 blocks per tick. Vertical motion is Minecraft's: a jump starts at 0.42 blocks
per tick, and each tick v becomes (v - 0.08) * 0.98, so a jump is 1.252 blocks high. The body moves along one axis at a time and stops at
blocks, so it slides along walls, and it climbs a block only by jumping. In water it floats, and it is lifted when it swims against a bank.
"""

from __future__ import annotations

import math

import numpy as np

from wmgym.envs.minecraft.voxel.addresses import cells_at
from wmgym.envs.minecraft.voxel.blocks import AIR, WATER
from wmgym.jit import njit

TICKS = 4  # per env step: 0.2 s
WALK = 4.317 / 20  # blocks per tick
TURN = math.radians(15)
HALF_WIDTH = 0.3
HEIGHT = 1.8
EYES = 1.62
JUMP = 0.42
GRAVITY = 0.08
DRAG = 0.98
WATER_SPEED = 0.55  # share of the walking speed
FLOAT = 1.1  # depth of the feet of a floating body; in a pool one block deep the body stands
BANK = 0.5  # upward speed of a body that swims against a bank
SKIN = 1e-4  # gap to a wall, so that a position rounded to float32 is still outside the wall

X, Y, Z, YAW, PITCH, RISE, GROUNDED = range(7)  # a body's state, float64 [7]; RISE in blocks per tick, GROUNDED 0 or 1


@njit(cache=True)
def blocked(grid, x, y, z):
    """Whether a body with its feet at (x, y, z) would overlap a solid block or leave the world."""
    edge = 0.5 * SKIN
    size_x, size_y, size_z = grid.shape
    for i in range(math.floor(x - HALF_WIDTH + edge), math.floor(x + HALF_WIDTH - edge) + 1):
        for j in range(math.floor(y - HALF_WIDTH + edge), math.floor(y + HALF_WIDTH - edge) + 1):
            if i < 0 or j < 0 or i >= size_x or j >= size_y:
                return True
            for k in range(math.floor(z + edge), math.floor(z + HEIGHT - edge) + 1):
                if k < 0 or k >= size_z:
                    return True
                cell = grid[i, j, k]
                if cell < AIR and cell != WATER:
                    return True
    return False


@njit(cache=True)
def _depth(grid, x, y, z):
    """Depth of the feet below the water's surface; 0 out of water."""
    i, j, k = math.floor(x), math.floor(y), math.floor(z)
    if not (0 <= i < grid.shape[0] and 0 <= j < grid.shape[1] and 0 <= k < grid.shape[2]):
        return 0.0
    top = k
    while top < grid.shape[2] and grid[i, j, top] == WATER:
        top += 1
    return top - z if top > k else 0.0


@njit(cache=True)
def _tick(grid, body, ahead, left, jump):
    x, y, z = body[X], body[Y], body[Z]
    depth = _depth(grid, x, y, z)
    speed = WALK * WATER_SPEED if depth > 0.0 else WALK
    if jump and (body[GROUNDED] > 0 or (0.0 < depth < FLOAT + 0.2)):
        body[RISE] = JUMP
    elif depth > 0.0 and body[RISE] < 0.2:  # not jumping: buoyancy towards the floating depth
        body[RISE] = 0.8 * body[RISE] + 0.2 * min(max(0.5 * (depth - FLOAT), -0.15), 0.2)

    # vertical motion, at most half a block at a time
    body[GROUNDED] = 0.0
    pieces = int(abs(body[RISE]) * 2) + 1
    for _ in range(pieces):
        goal = z + body[RISE] / pieces
        if not blocked(grid, x, y, goal):
            z = goal
            continue
        if body[RISE] > 0:
            z = max(z, math.floor(goal + HEIGHT) - HEIGHT - SKIN)
        else:
            z = min(z, math.floor(goal) + 1.0)
            body[GROUNDED] = 1.0
        body[RISE] = 0.0
        break
    if depth == 0.0 or body[RISE] >= 0.2:
        body[RISE] = (body[RISE] - GRAVITY) * DRAG

    # horizontal motion: x, then y
    cos_yaw, sin_yaw = math.cos(body[YAW]), math.sin(body[YAW])
    dx = speed * (ahead * cos_yaw - left * sin_yaw)
    dy = speed * (ahead * sin_yaw + left * cos_yaw)
    stopped = False
    if blocked(grid, x + dx, y, z):
        stopped = True
        wall = math.floor(x + dx + HALF_WIDTH) - HALF_WIDTH - SKIN if dx > 0 else math.floor(x + dx - HALF_WIDTH) + 1 + HALF_WIDTH + SKIN
        if not blocked(grid, wall, y, z) and abs(wall - x) < abs(dx):
            x = wall
    else:
        x += dx
    if blocked(grid, x, y + dy, z):
        stopped = True
        wall = math.floor(y + dy + HALF_WIDTH) - HALF_WIDTH - SKIN if dy > 0 else math.floor(y + dy - HALF_WIDTH) + 1 + HALF_WIDTH + SKIN
        if not blocked(grid, x, wall, z) and abs(wall - y) < abs(dy):
            y = wall
    else:
        y += dy
    if stopped and _depth(grid, x, y, z) > 0.0:
        body[RISE] = BANK
    body[X], body[Y], body[Z] = x, y, z


@njit(cache=True)
def step(grid, body, action):
    """One action (an index into wmgym.settings.minecraft.ACTIONS) on `body`, in place: turn or look, then 4 ticks."""
    if action == 6 or action == 7:
        yaw = body[YAW] + (TURN if action == 6 else -TURN)
        body[YAW] = (yaw + math.pi) % (2 * math.pi) - math.pi
    elif action == 8:
        body[PITCH] = min(body[PITCH] + TURN, math.pi / 2)
    elif action == 9:
        body[PITCH] = max(body[PITCH] - TURN, -math.pi / 2)
    ahead = 1.0 if action == 1 or action == 5 else -1.0 if action == 2 else 0.0
    left = 1.0 if action == 3 else -1.0 if action == 4 else 0.0
    for _ in range(TICKS):
        _tick(grid, body, ahead, left, action == 5)


@njit(cache=True)
def step_lanes(worlds, shape, bodies, actions):
    """One action per lane on bodies [N, 7], in place. A negative action leaves its body unchanged.

    worlds: int64 [N, 3], the addresses of each lane's `grid`, `above` and `light`; shape: the shape of these arrays.
    """
    for lane in range(len(actions)):
        if actions[lane] >= 0:
            step(cells_at(worlds[lane, 0], shape), bodies[lane], actions[lane])


def body_at(pose: np.ndarray) -> np.ndarray:
    """A body at rest on `pose`: float64 [7]."""
    body = np.zeros(7)
    body[:5] = pose
    body[YAW] = (body[YAW] + math.pi) % (2 * math.pi) - math.pi
    body[GROUNDED] = 1.0
    return body
