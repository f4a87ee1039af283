"""Scenes with landmarks for `wmgym eval revisit`, found once and kept in files."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np

from wmgym import settings
from wmgym.agents.paths import Motions
from wmgym.agents.scenes import Scene, find_scene
from wmgym.benchmarks.judges import Case
from wmgym.files import json_object, replacing

_ARRAYS = ("actions", "poses", "frames", "masks", "empty")


def landmark_env(setting: str, size: int, env_kwargs: str) -> gym.Env:
    """The ground truth of a setting, in which landmarks are built. ValueError if it cannot set blocks and measure depth."""
    truth = settings.get(setting).truth
    if truth is None:
        raise ValueError(f"setting {setting!r} has no ground truth to build landmarks in; use --branches replay return")
    free = {"task": "free"} if "free" in settings.get(setting).tasks else {}
    kwargs = {**free, "size": size, **json_object(env_kwargs, "env_kwargs")}
    env = gym.make(truth, disable_env_checker=True, render_mode="rgb_array", **kwargs)
    if not {"builds", "depth"} <= env.metadata.keys():
        env.close()
        raise ValueError(
            f"landmarks need a ground truth that sets blocks and measures depth, {truth} does not; use --branches replay return"
        )
    return env


def find_cases(
    folder: Path,
    env: gym.Env,
    scenes: int,
    variants: int,
    motions: Motions,
    away: float,
    wait: int,
    first_seed: int,
    progress: Callable[[str, int, int], None],
) -> list[Case]:
    """The first variants of each scene. A scene's films are read from its file in `folder`, or recorded and written there."""
    cases: list[Case] = []
    seed = first_seed
    for number in range(scenes):
        file = folder / f"scene-{number:03d}.npz"
        scene = _read(file)
        if scene is None:
            scene = find_scene(env, itertools.count(seed), motions, away, wait)
            with replacing(file) as temporary, open(temporary, "wb") as stream:
                np.savez_compressed(stream, **{name: getattr(scene, name) for name in (*_ARRAYS, "seed", "out")})
        seed = scene.seed + 1
        cases += [scene.case(number, variant) for variant in range(variants)]
        progress("scenes", number + 1, scenes)
    return cases


def _read(file: Path) -> Scene | None:
    """A scene from its file, or None if there is none that is whole."""
    try:
        with np.load(file) as arrays:
            return Scene(seed=int(arrays["seed"]), out=int(arrays["out"]), **{name: arrays[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
