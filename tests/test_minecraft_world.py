"""The voxel world: one world per seed, the same for ever, and a body that stays inside of it."""

import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from wmgym.envs.minecraft.voxel import engine, physics
from wmgym.envs.minecraft.voxel.blocks import AIR, WATER
from wmgym.envs.minecraft.voxel.world import BORDER, WIDTH, VoxelWorld, distance, generate

ARRAYS = ("grid", "above", "light", "starts", "walkable")
WALK = np.random.default_rng(7).choice(10, 240, p=[0.02, 0.4, 0.02, 0.03, 0.03, 0.2, 0.1, 0.1, 0.05, 0.05])
PICTURES = Path(__file__).parent / "data" / "minecraft_golden.png"  # a row per seed, a frame each 40 steps of WALK

# What a world model was trained on. A change here is a change of the world: every bundled weight would need a new version.
GOLDEN = {
    0: {
        "grid": "4371d254da3762a6",
        "above": "2c43815aba1c6002",
        "light": "ad2641c787021a8d",
        "starts": "7d841edec10f1936",
        "walkable": "454460f8b6b24933",
    },
    1: {
        "grid": "505fd7ba9589ecea",
        "above": "969727da75344a20",
        "light": "e192f57abeae5887",
        "starts": "825d6af8cca4d90d",
        "walkable": "df5fdade0d7ab28a",
    },
}


def fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def walk_pictures(seed: int) -> np.ndarray:
    """Frames along a fixed walk: [64, 6 * 64, 3]."""
    body = engine.VoxelBackend()
    body.reset(seed, None)
    frames = []
    for i, action in enumerate(WALK):
        body.step(int(action))
        if i % 40 == 0:
            frames.append(body.render(64, 64))
    return np.concatenate(frames, 1)


@pytest.fixture(scope="module")
def worlds() -> list[VoxelWorld]:
    return [engine.world_of(seed) for seed in range(4)]


@pytest.mark.parametrize("seed", GOLDEN)
def test_the_worlds_are_those_that_models_were_trained_on(seed: int) -> None:
    world = engine.world_of(seed)
    assert {name: fingerprint(getattr(world, name)) for name in ARRAYS} == GOLDEN[seed]


def test_the_pictures_are_those_that_models_were_trained_on() -> None:
    """To a grey level in a pixel of a thousand: another processor may round differently."""
    then = cv2.imread(str(PICTURES))[..., ::-1].astype(int)
    off = np.abs(np.concatenate([walk_pictures(seed) for seed in GOLDEN]) - then).max(-1)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_a_seed_makes_one_world_and_another_seed_another(worlds: list[VoxelWorld]) -> None:
    again = generate(3)
    assert all(fingerprint(getattr(again, name)) == fingerprint(getattr(worlds[3], name)) for name in ARRAYS)
    for name in ARRAYS:
        assert len({fingerprint(getattr(world, name)) for world in worlds}) == len(worlds)


@pytest.mark.parametrize("below", [True, False])
def test_distances_are_those_to_the_nearest_block(below: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.random((12, 11, 10)) < 0.01
    grid, solid = blocks.astype(np.uint8), np.argwhere(blocks)
    distance(grid, 5, below)
    for cell in np.argwhere(~blocks):
        seen = solid if below else solid[solid[:, 2] >= cell[2]]
        nearest = np.abs(seen - cell).max(1).min(initial=5)
        assert grid[tuple(cell)] == AIR + nearest
    assert (grid[blocks] == 1).all()


def test_most_of_a_world_can_be_walked(worlds: list[VoxelWorld]) -> None:
    for world in worlds:
        assert 0.5 < world.walkable.mean() < 0.95
        cells = world.starts
        assert world.walkable[cells[:, 0], cells[:, 1]].all()


def test_a_body_starts_on_dry_open_ground() -> None:
    for seed in range(10):
        body = engine.VoxelBackend()
        x, y, z, yaw, pitch = (float(v) for v in body.reset(seed, None))
        grid = body.world.grid
        below = grid[int(x), int(y), int(z) - 1]
        assert not physics.blocked(grid, x, y, z)
        assert below < AIR and below != WATER and grid[int(x), int(y), int(z)] >= AIR
        assert (grid[int(x), int(y), int(z) :] >= AIR).all()  # nothing overhead
        assert body.reachable(x, y)
        assert pitch == 0 and (yaw / math.radians(15)) == pytest.approx(round(yaw / math.radians(15)), abs=1e-5)


def test_nobody_leaves_a_world(worlds: list[VoxelWorld]) -> None:
    """Bodies from all around it jump at the border for a minute, sliding along it either way."""
    world, rng = worlds[0], np.random.default_rng(0)
    rim = np.argwhere(world.walkable)
    side = np.minimum(rim, WIDTH - 1 - rim).min(1)
    rim = rng.permutation(rim[side < BORDER + 4])[:64]
    lanes = engine.VoxelLanes(len(rim))
    for body, (x, y) in zip(lanes.engines, rim):
        top = int(np.flatnonzero(world.grid[x, y] < AIR).max()) + 1
        out = np.array([x + 0.5, y + 0.5]) - WIDTH / 2
        axis = np.abs(out).argmax()
        yaw = math.atan2(*(np.sign(out[axis]) * np.eye(2)[axis])[::-1]) + rng.uniform(-0.7, 0.7)
        body.reset(0, np.array([x + 0.5, y + 0.5, top, yaw, 0], np.float32))
    started = np.array([body.save()["body"][:2] for body in lanes.engines])
    for _ in range(300):
        poses = lanes.step(np.full(len(rim), 5))
    assert np.hypot(*(poses[:, :2] - started).T).max() > 5  # they did move
    assert (poses[:, :2] >= BORDER).all() and (poses[:, :2] <= WIDTH - BORDER).all() and (poses[:, 2] > 0).all()
