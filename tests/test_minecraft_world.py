"""The voxel world: one world per seed, the same for ever, and a body that stays inside of it."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from wmgym.envs.minecraft.voxel import engine
from wmgym.envs.minecraft.voxel.world import VoxelWorld

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
